"""Read and check the configuration of a run, its data sets and its methods, and plan the grid of jobs.

The schemas in ``config/schemas`` are closed: they refuse unknown keys. They also hold the defaults of workflow keys.
Hyper-parameters are in ``config/methods``. Nothing here has a default of its own.
"""

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from clue.benchmark.errors import BenchmarkError

ORACLE = "oracle"
"""The one method that reads the solution. A rule of rules/metrics.smk makes its embedding, not a method's program."""
MODALITIES = ("rna", "atac", "adt")
"""In the order that every file and every YAML uses."""
ALL_SETS = [list(chosen) for n in range(2, len(MODALITIES) + 1) for chosen in combinations(MODALITIES, n)]
"""The sets of modalities that ``modalities: any`` in a method's YAML stands for."""
FILE_KEYS = ("file", "files", "samples", "features", "cells", "labels")
"""Keys of ``prepare`` that name raw files."""
TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "object": "a map of keys",
    "string": "text",
}
"""The names of JSON's types in messages."""


class ConfigError(BenchmarkError):
    """A configuration file is wrong."""


# ---- files and schemas ---------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a map. All keys become text, exactly as written in the file.

    Raises
    ------
    ConfigError
        If it cannot be read, is not UTF-8 or not YAML, or holds a value that JSON cannot: a set, a date, a circular
        reference or infinity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read ({reason}); a YAML file is needed") from error
    try:
        data = yaml.load(text, _Loader)
        json.dumps(data, allow_nan=False)  # rules and methods receive settings as JSON
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's constructors raise whatever their conversion raises, for instance for `!!int x`.
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a map of keys, not {type(data).__name__}")
    return data


class _Loader(yaml.SafeLoader):
    """A safe loader that reads keys and dates as text and refuses a map that has the same key twice.

    YAML's own loader takes the last of two equal keys. It also turns keys such as ``1``, ``no`` and ``2021-01-02`` into
    numbers, booleans and dates, but here they name samples and splits.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


# JSON has only one kind of number, so 1.0 would pass as the seed 1.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


def check(data: dict[str, Any], schema: Path, where: str) -> dict[str, Any]:
    """Return `data` with the defaults of `schema` filled in. The most relevant error is raised, as one line."""
    rules = read_yaml(schema)
    checked = copy.deepcopy(data)
    _fill_defaults(checked, rules)
    error = jsonschema.exceptions.best_match(_Validator(rules).iter_errors(checked))
    if error is not None:
        raise ConfigError(f"{where}: {_one_line(error)}")
    return checked


def _fill_defaults(data: Any, rules: dict[str, Any]) -> None:
    if not isinstance(data, dict):
        return
    for key, rule in rules.get("properties", {}).items():
        if "default" in rule:
            data.setdefault(key, copy.deepcopy(rule["default"]))
        if key in data:
            _fill_defaults(data[key], rule)


def _one_line(error: jsonschema.ValidationError) -> str:
    key = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = sorted(set(map(str, error.instance)) - set(known))
        return f"{key}: unknown key {', '.join(map(repr, unknown))}{_suggest(unknown[0], known)}"
    message = error.message
    if error.validator == "type":
        wanted = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
        is_number = wanted == ["string"] and isinstance(error.instance, int | float)  # true and false are int
        is_needed = " or ".join(TYPES.get(kind, kind) for kind in wanted)
        message = f"{error.instance!r} is not {is_needed}{'; put it in quotes' if is_number else ''}"
    words = error.schema.get("errorMessage") or error.schema.get("description")
    if error.validator in ("oneOf", "anyOf", "pattern") and words:
        message = f"{error.instance!r} does not fit: {words}"
    return f"{key}: {message}"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


# ---- data sets and methods -----------------------------------------------------------------------


def _schema(root: Path, kind: str) -> Path:
    return root / "config" / "schemas" / f"{kind}.schema.yaml"


def load(kind: str, name: str, root: str | Path = ".", named_by: str = "") -> dict[str, Any]:
    """Return the checked ``config/<kind>/<name>.yaml`` below `root`; `kind` is ``datasets`` or ``methods``.

    A message about the name itself begins with `named_by`, the place where the name is given.
    """
    root = Path(root)
    folder = root / "config" / kind
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):  # it becomes the name of a rule or of a folder
        needed = "must consist of letters, digits and underscores, and begin with a letter"
        raise ConfigError(f"{named_by}the name {name!r} {needed}; rename {path}")
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{named_by}unknown {kind[:-1]} {name!r}{_suggest(name, known)} (no {path})")
    spec = check(read_yaml(path), _schema(root, kind[:-1]), str(path))
    if kind == "methods" and spec["modalities"] == "any":
        spec["modalities"] = copy.deepcopy(ALL_SETS)
    for modalities in [spec["modalities"]] if kind == "datasets" else spec["modalities"]:
        if modalities != sorted(modalities, key=MODALITIES.index):
            raise ConfigError(
                f"{path}: modalities: {', '.join(modalities)} must be in the order {', '.join(MODALITIES)}"
            )
    if kind == "datasets":
        _check_sources(spec, path)
        _keep_columns_of_splits(spec)
        _check_mosaics(spec, path)
        _resolve_within(spec["splits"], path)
    if kind == "methods":
        _check_parameters(spec, path)
        spec["variants"] = {"default": {}, **spec["variants"]}
        program = f"scripts/methods/{spec['script']}" if "script" in spec else f"rules/methods/{name}.smk"
        if not (root / program).exists():
            raise ConfigError(f"{path}: script: no file {program}")
    return spec


def _check_parameters(spec: dict[str, Any], path: Path) -> None:
    """Refuse settings that would never be read: presets of unsupported modalities and unknown hyper-parameters.

    A hyper-parameter that `params` lacks gets its value only from the presets, so all of them must give one. Maps by
    modality, such as ``n_features``, may name fewer modalities.
    """
    supported = ["+".join(modalities) for modalities in spec["modalities"]]
    for name in spec["presets"]:
        if name not in supported:
            raise ConfigError(f"{path}: presets: {name!r} is not in modalities{_suggest(name, supported)}")
    everywhere = [_merge(spec["params"], spec["presets"].get(name, {})) for name in supported]
    for key in FEATURES_SETTINGS if spec["features"] else ():
        if not all(key in params for params in everywhere):
            raise ConfigError(f"{path}: features: encoder inputs need {key!r} in params or in every preset")
    for part in ("presets", "budgets", "variants"):
        for name, layer in spec[part].items():
            for known in everywhere:
                for fault in _faults(layer, known, f"{part}.{name}"):
                    raise ConfigError(f"{path}: {fault}")


def _faults(layer: Mapping, known: Mapping, place: str) -> Iterator[str]:
    """Yield the faults of a layer: keys that the layer below lacks, and values that are no maps where that has maps."""
    for key, value in layer.items():
        if key not in known and key not in MODALITIES:
            yield f"{place}: {key!r} is not in params{_suggest(key, sorted(known))}"
        elif isinstance(known.get(key), dict):
            if not isinstance(value, dict):
                yield f"{place}.{key}: {value!r} is not a map of keys, as in params"
            else:
                yield from _faults(value, known[key], f"{place}.{key}")


def _resolve_within(splits: dict[str, dict[str, Any]], path: Path) -> None:
    """Replace the names under ``within`` by the settings of the splits that they name."""
    outer = {name: dict(split) for name, split in splits.items() if "within" not in split}
    for name, split in splits.items():
        for wanted in split.get("within", []):
            if wanted not in outer:
                raise ConfigError(
                    f"{path}: splits.{name}.within: {wanted!r} is not a split, or has a `within` of its own"
                    f"{_suggest(wanted, sorted(outer))}"
                )
        if "within" in split:
            split["within"] = [outer[wanted] for wanted in split["within"]]


def _check_mosaics(spec: dict[str, Any], path: Path) -> None:
    """Refuse a mosaic whose subsets do not fit the data set's modalities, or whose fractions do not add up to 1."""
    modalities = spec["modalities"]
    for name, split in spec["splits"].items():
        if "mosaic" not in split:
            continue
        where = f"{path}: splits.{name}.mosaic"
        if "paired_fraction" in split:
            raise ConfigError(f"{where}: paired_fraction also says which cells are paired; keep only one of the two")
        subsets = {subset: subset.split("+") for subset in split["mosaic"]}
        for subset, parts in subsets.items():
            if parts != [modality for modality in modalities if modality in parts]:
                raise ConfigError(f"{where}: {subset!r} may only name {', '.join(modalities)}, in that order")
        if unseen := set(modalities).difference(*subsets.values()):
            raise ConfigError(f"{where}: no training cell is seen in {', '.join(sorted(unseen))}; add a subset with it")
        if abs(sum(split["mosaic"].values()) - 1) > 1e-6:
            total = sum(split["mosaic"].values())
            raise ConfigError(f"{where}: the fractions add up to {total:g}; change them so that they add up to 1")


def _check_sources(spec: dict[str, Any], path: Path) -> None:
    names = [source.get("name", source["kind"]) for source in spec.get("sources", [])]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: sources: more than one is named {twice[0]!r}; give each its own `name`")
    for source in spec.get("sources") or [spec.get("source", {})]:
        settings = source.get("prepare") or spec.get("prepare", {})
        given = [member["file"] for member in source.get("members", ())] or list(source.get("files", ()))
        named = [settings[key] for key in FILE_KEYS if key in settings]
        for file in [file for entry in named for file in (entry.values() if isinstance(entry, dict) else [entry])]:
            # a sample may be named by the common beginning of its files
            if not any(name == file or ("samples" in settings and name.startswith(file)) for name in given):
                raise ConfigError(f"{path}: prepare: source has no file {file!r}{_suggest(file, given)}")


def _keep_columns_of_splits(spec: dict[str, Any]) -> None:
    """Tell the preparation of a user's own files which columns splits name; it keeps no others."""
    columns = sorted({split["column"] for split in spec["splits"].values() if "column" in split})
    for settings in (place.get("prepare", {}) for place in (spec, *spec.get("sources", ()))):
        if columns and settings.get("kind") == "own":
            settings["columns"] = columns


# ---- the benchmark -------------------------------------------------------------------------------


FEATURES_SETTINGS = ("n_components", "n_features")
"""Hyper-parameters that determine the encoder inputs."""


def features_name(which: str, params: Mapping[str, Any]) -> str:
    """Return the name of the encoder inputs that are fitted on the cells `which` with the settings in `params`."""
    text = json.dumps([params[key] for key in FEATURES_SETTINGS], sort_keys=True)
    return f"{which}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Job:
    """One job of the planned grid: a method variant with one seed on one split of a data set."""

    run: str
    dataset: str
    split: str
    method: str
    variant: str
    seed: int
    transductive: bool
    reason: str = ""
    """Why the job cannot run; empty if it can."""
    status: str = ""
    """``unsupported`` or ``unavailable`` if the job cannot run; else empty."""

    @property
    def folder(self) -> str:
        """The folder of its outputs, relative to the project."""
        return f"results/{self.run}/{self.dataset}/{self.split}/{self.method}/{self.variant}/seed-{self.seed}"

    @property
    def log(self) -> str:
        """The path of its logs without suffix, relative to the project."""
        return f"logs/{self.run}/{self.dataset}/{self.split}/{self.method}/{self.variant}/seed-{self.seed}"

    def is_scored(self, root: Path = Path()) -> bool:
        """Return whether a project folder holds scores that were made from the embedding that is there."""
        metrics, embedding = root / self.folder / "metrics.tsv", root / self.folder / "embedding.h5ad"
        return metrics.exists() and embedding.exists() and metrics.stat().st_mtime >= embedding.stat().st_mtime


class Benchmark:
    """The checked configuration of one run, and everything derived from it.

    Parameters
    ----------
    config
        The run's configuration, for instance ``config/quick.yaml`` as a map.
    root
        The project folder.
    where
        The name of the configuration in error messages.
    """

    def __init__(self, config: dict[str, Any], root: str | Path = ".", where: str = "config"):
        self.root = Path(root)
        self.config = check(config, _schema(self.root, "config"), where)
        self.datasets = self._select("datasets", "splits", where)
        self.methods = self._select("methods", "variants", where)
        self._check_budget(where)
        self.unavailable: dict[str, str] = {}
        """Methods that lack software, with the reason; set from `running.machine.unavailable`."""

    def _select(self, kind: str, parts: str, where: str) -> dict[str, dict[str, Any]]:
        """Load the entries of a list like ``[clue, cca/default]``, each with only the parts that the list names."""
        chosen: dict[str, dict[str, Any]] = {}
        for entry in self.config[kind]:
            name, _, part = entry.partition("/")
            spec = load(kind, name, self.root, f"{where}: {kind}: ")
            if part and part not in spec[parts]:
                raise ConfigError(
                    f"{where}: {kind}: {name!r} has no {parts[:-1]} {part!r}{_suggest(part, sorted(spec[parts]))}"
                )
            wanted = {part: spec[parts][part]} if part else spec[parts]
            known = chosen.setdefault(name, {**spec, parts: {}})
            if twice := [part for part in wanted if part in known[parts]]:
                raise ConfigError(f"{where}: {kind}: '{name}/{twice[0]}' is named twice; remove one of the two")
            known[parts].update(wanted)
        return chosen

    def _check_budget(self, where: str) -> None:
        budget = self.config["budget"]
        if not budget or any(budget in spec["budgets"] for spec in self.methods.values()):
            return
        # A run may consist of methods that have no budgets at all.
        files = (self.root / "config" / "methods").glob("*.yaml")
        known = sorted({name for file in files for name in read_yaml(file).get("budgets") or {}})
        if budget not in known:
            raise ConfigError(f"{where}: budget: no method has {budget!r}{_suggest(budget, known)}")

    def sets(self, method: str, modalities: list[str]) -> list[list[str]]:
        """Return the sets of modalities on which a method runs: all at once, or else each pair that it supports."""
        supported = self.methods[method]["modalities"]
        wanted = [modalities] if modalities in supported else map(list, combinations(modalities, 2))
        return [chosen for chosen in wanted if chosen in supported]

    def is_by_pairs(self, method: str, modalities: list[str]) -> bool:
        """Return whether a method runs on pairs of these modalities, because it cannot take all of them at once."""
        return method != ORACLE and modalities not in self.methods[method]["modalities"]

    def job_params(self, method: str, variant: str, modalities: list[str]) -> dict[str, Any]:
        """Return the hyper-parameters of a job. If the method runs by pairs, they are keyed by the pair's name."""
        if not self.is_by_pairs(method, modalities):
            return self.params(method, variant, modalities)
        return {"+".join(pair): self.params(method, variant, pair) for pair in self.sets(method, modalities)}

    def params(self, method: str, variant: str, modalities: list[str]) -> dict[str, Any]:
        """Return the hyper-parameters: params < preset < budget < variant, maps merged key by key."""
        spec = self.methods[method]
        preset, budget = spec["presets"].get("+".join(modalities), {}), spec["budgets"].get(self.config["budget"], {})
        return reduce(_merge, (preset, budget, spec["variants"][variant]), spec["params"])

    def features(self, dataset: str, method: str, variant: str, seed: int) -> dict[str, dict[str, Any]]:
        """Return the settings of the encoder inputs that a job shares with others, by name (`features_name`)."""
        modalities = self.datasets[dataset]["modalities"]
        if method == ORACLE or self.is_by_pairs(method, modalities):
            return {}
        params = self.params(method, variant, modalities)
        folds = [f"fold-{seed + fold}" for fold in range(params.get("n_folds", 1))]
        with_test = "with_test" if params.get("transductive") else "all"
        wanted = {"all": ["all"], "with_test": [with_test], "paired": ["paired"], "folds": folds}
        cells = [which for part in self.methods[method]["features"] for which in wanted[part]]
        return {features_name(which, params): {key: params[key] for key in FEATURES_SETTINGS} for which in cells}

    def all_features(self) -> dict[str, dict[str, Any]]:
        """Return the results of `features` for all jobs that can run, merged."""
        return {
            name: settings
            for job in self.plan()
            if not job.reason
            for name, settings in self.features(job.dataset, job.method, job.variant, job.seed).items()
        }

    def gpus(self, method: str) -> int:
        """Return the number of GPUs that a job of a method asks for."""
        if self.config["device"] != "cuda" or method == ORACLE:
            return 0
        return self.methods[method]["resources"]["gpu"]

    def plan(self) -> list[Job]:
        """Return every planned job. Those that cannot run are included, with the reason."""
        jobs = []
        for dataset, data in self.datasets.items():
            modalities = data["modalities"]
            for split in data["splits"]:
                for method, spec in self.methods.items():
                    obstacle = self._obstacle(method, modalities)
                    for variant in spec["variants"]:
                        transductive = self._is_transductive(method, variant, modalities)
                        jobs += [
                            Job(self.config["run"], dataset, split, method, variant, seed, transductive, *obstacle)
                            for seed in self.config["seeds"]
                        ]
                jobs.append(Job(self.config["run"], dataset, split, ORACLE, "default", 0, False))
        return jobs

    def _is_transductive(self, method: str, variant: str, modalities: list[str]) -> bool:
        sets = self.sets(method, modalities) or [modalities]
        return any(self.params(method, variant, chosen).get("transductive", False) for chosen in sets)

    def _obstacle(self, method: str, modalities: list[str]) -> tuple[str, str]:
        """Return why a method cannot run on these modalities, and the job's status; empty texts if it can."""
        if not self.sets(method, modalities):
            return f"does not support {'+'.join(modalities)}", "unsupported"
        if method in self.unavailable:
            return self.unavailable[method], "unavailable"
        return "", ""
