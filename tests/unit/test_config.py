"""The configuration: what it accepts, the defaults it fills in, its error messages, and the plan."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import one_line_error

from clue.benchmark.config import Benchmark, ConfigError, read_yaml

ROOT = Path(__file__).parents[2]

METHOD = {
    "label": "My method",
    "script": "my_method.py",
    "modalities": [["rna", "adt"]],
    "params": {"n_latent": 50, "max_epochs": 200, "lr": 0.1},
    "presets": {"rna+adt": {"n_latent": 20, "max_epochs": 100, "lr": 0.2}},
    "budgets": {"quick": {"max_epochs": 30, "lr": 0.3}},
    "variants": {"small": {"lr": 0.4}},
}
NESTED = {"params": METHOD["params"] | {"net": {"depth": 2}}}
BOTH = [["rna", "atac"], ["rna", "adt"]]
DATASET = {"label": "Tiny", "modalities": ["rna", "adt"], "splits": {"a": {}, "b": {}}}
RUN = {"run": "test", "datasets": ["tiny"], "methods": ["my_method"], "seeds": [0, 1]}


@pytest.fixture
def project(tmp_path):
    """A project folder with one method and two data sets; the schema of data sets is not tested here."""
    shutil.copytree(ROOT / "config" / "schemas", tmp_path / "config" / "schemas")
    (tmp_path / "config/schemas/dataset.schema.yaml").write_text("type: object\n")
    write(tmp_path / "config/methods/my_method.yaml", METHOD)
    write(tmp_path / "config/datasets/tiny.yaml", DATASET)
    write(tmp_path / "config/datasets/tiny_multiome.yaml", DATASET | {"modalities": ["rna", "atac"]})
    (tmp_path / "scripts/methods").mkdir(parents=True)
    (tmp_path / "scripts/methods/my_method.py").touch()
    return tmp_path


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data))


def error(project, where="config/quick.yaml", **changes):
    """Return the error message for a wrong run configuration."""
    return one_line_error(Benchmark, RUN | changes, project, where, error=ConfigError)


# ---- valid configurations ------------------------------------------------------------------------


def test_defaults_come_from_the_schema(project):
    benchmark = Benchmark(RUN, project)
    assert benchmark.config["device"] == "cpu" and benchmark.config["max_cells"] is None
    assert benchmark.methods["my_method"]["resources"] == {"gpu": 0, "threads": 1, "mem_gb": 4, "runtime_min": 60}
    assert RUN == {"run": "test", "datasets": ["tiny"], "methods": ["my_method"], "seeds": [0, 1]}


def test_precedence_is_params_preset_budget_variant(project):
    quick = Benchmark(RUN | {"budget": "quick"}, project)
    assert quick.params("my_method", "small", ["rna", "adt"]) == {"n_latent": 20, "max_epochs": 30, "lr": 0.4}
    assert quick.params("my_method", "default", ["rna", "adt"]) == {"n_latent": 20, "max_epochs": 30, "lr": 0.3}
    assert quick.params("my_method", "default", ["rna", "atac"]) == {"n_latent": 50, "max_epochs": 30, "lr": 0.3}
    plain = Benchmark(RUN, project)
    assert plain.params("my_method", "default", ["rna", "adt"]) == {"n_latent": 20, "max_epochs": 100, "lr": 0.2}


def test_plan_is_the_whole_grid_with_the_oracle_once_per_split(project):
    jobs = Benchmark(RUN | {"datasets": ["tiny", "tiny_multiome/b"]}, project).plan()
    of_methods = [job for job in jobs if job.method != "oracle"]
    assert len(of_methods) == 3 * 2 * 2, "three splits, two variants, two seeds"
    assert len(jobs) - len(of_methods) == 3
    reasons = {job.dataset: job.reason for job in of_methods}
    assert reasons == {"tiny": "", "tiny_multiome": "does not support rna+atac"}
    assert of_methods[0].folder == "results/test/tiny/a/my_method/default/seed-0"


def test_part_after_a_slash_selects_one(project):
    benchmark = Benchmark(RUN | {"datasets": ["tiny/b"], "methods": ["my_method/small"], "seeds": [5]}, project)
    assert [job.folder for job in benchmark.plan()] == [
        "results/test/tiny/b/my_method/small/seed-5",
        "results/test/tiny/b/oracle/default/seed-0",
    ]


# ---- errors: one line that names the file, the key and the fix ------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"datasets": ["tny"]}, ["unknown dataset 'tny'", "did you mean 'tiny'?"]),
        ({"methods": ["my_metod"]}, ["config/quick.yaml: methods: unknown method 'my_metod'; did you mean 'my_meth"]),
        ({"methods": ["x" * 5000]}, ["config/quick.yaml: methods: unknown method 'xxx"]),
        ({"methods": ["my_method/smal"]}, ["config/quick.yaml", "has no variant 'smal'", "did you mean 'small'?"]),
        ({"methods": ["my_method", "my_method/default"]}, ["methods: 'my_method/default' is named twice; remove one"]),
        ({"methods": ["my_method", "my_method"]}, ["config/quick.yaml: methods: 'my_method/default' is named twice"]),
        ({"datasets": ["tiny/c"]}, ["config/quick.yaml", "has no split 'c'", "known: a, b"]),
        ({"seed": [0]}, ["config/quick.yaml", "unknown key 'seed'", "did you mean 'seeds'?"]),
        ({"seeds": "0"}, ["config/quick.yaml", "seeds", "'0' is not a list"]),
        ({"seeds": [0, "1"]}, ["seeds.1", "'1' is not a whole number"]),
        ({"seeds": []}, ["seeds"]),
        ({"seeds": [1.0]}, ["seeds.0", "1.0 is not a whole number"]),
        ({"seeds": [2**32]}, ["seeds.0", "greater than the maximum"]),
        ({"budget": 1}, ["budget: 1 is not text; put it in quotes"]),
        ({"methods": [True]}, ["methods.0: True is not text; put it in quotes"]),
        ({"device": "tpu"}, ["device", "'tpu' is not one of ['cpu', 'cuda']"]),
        ({"run": "my run"}, ["run: 'my run' does not fit: use lower-case letters"]),
        ({"max_cells": 3}, ["max_cells", "less than the minimum"]),
        ({"run": "prepared"}, ["run", "'prepared' does not fit"]),
        ({"run": "slurm"}, ["run", "'slurm' does not fit"]),
        ({"budget": "qiuck"}, ["config/quick.yaml: budget: no method has 'qiuck'", "did you mean 'quick'?"]),
        ({"datasets": ["my data"]}, ["config/quick.yaml: datasets: the name 'my data' must consist of", "rename"]),
        ({"data_mirror": "/scratch"}, ["data_mirror", "'/scratch' does not fit: it must begin with https://"]),
        ({"data_mirror": "file://scratch"}, ["data_mirror", "'file://scratch' does not fit"]),
    ],
)
def test_wrong_run(project, changes, parts):
    message = error(project, **changes)
    for part in parts:
        assert part in message


def test_split_within_another_holds_the_outer_settings(project):
    splits = {"outer": {"kind": "random", "seed": 0}, "inner": {"kind": "random", "seed": 1, "within": ["outer"]}}
    write(project / "config/datasets/tiny.yaml", DATASET | {"splits": splits})
    assert Benchmark(RUN, project).datasets["tiny"]["splits"]["inner"]["within"] == [splits["outer"]]


@pytest.mark.parametrize("within", ["outr", "inner"])
def test_split_within_an_unknown_one(project, within):
    splits = {"outer": {"kind": "random"}, "inner": {"kind": "random", "within": [within]}}
    write(project / "config/datasets/tiny.yaml", DATASET | {"splits": splits})
    message = error(project)
    assert "tiny.yaml: splits.inner.within" in message and "outer" in message


def test_missing_key(project):
    with pytest.raises(ConfigError, match="'seeds' is a required property"):
        Benchmark({key: value for key, value in RUN.items() if key != "seeds"}, project)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"scripts": "x.py"}, "unknown key 'scripts'; did you mean 'script'?"),
        ({"resources": {"gpus": 1}}, "resources: unknown key 'gpus'; did you mean 'gpu'?"),
        ({"script": "none.py"}, "no file scripts/methods/none.py"),
        ({"modalities": [["rna", "protein"]]}, "modalities.0.1: 'protein' is not one of"),
        ({"params": 3}, "params: 3 is not a map of keys"),
        ({"variants": {"small": 3}}, "variants.small: 3 is not a map of keys"),
        ({"variants": {"very small": {}}}, "variants: 'very small' does not fit: use letters, digits"),
        ({"variants": {"default": {}}}, "variants: 'default' does not fit"),
        ({"variants": {"small": {"n_laten": 2}}}, "variants.small: 'n_laten' is not in params; did you mean 'n_lat"),
        ({"budgets": {"quick": {"max_epoch": 2}}}, "budgets.quick: 'max_epoch' is not in params; did you mean"),
        (NESTED | {"variants": {"deep": {"net": [3]}}}, "variants.deep.net: [3] is not a map of keys, as in params"),
        (NESTED | {"variants": {"deep": {"net": {"dept": 3}}}}, "variants.deep.net: 'dept' is not in params; did you"),
        ({"presets": {"rna+adt": {"n_laten": 2}}, "modalities": BOTH}, "presets.rna+adt: 'n_laten' is not in params"),
        ({"presets": {"adt+rna": {"lr": 2}}}, "presets: 'adt+rna' is not in modalities; known: rna+adt"),
        ({"presets": {"rna+atac": {"lr": 2}}}, "presets: 'rna+atac' is not in modalities; did you mean 'rna+adt'?"),
        ({"modalities": 3}, "modalities: 3 does not fit: The sets of modalities that it takes at once"),
        ({"sources": ["/etc"]}, "sources.0: '/etc' does not fit"),
        ({"modalities": [["adt", "rna"]]}, "modalities: adt, rna must be in the order rna, atac, adt"),
    ],
)
def test_wrong_method(project, changes, part):
    write(project / "config/methods/my_method.yaml", METHOD | changes)
    message = error(project)
    assert "config/methods/my_method.yaml" in message and part in message


@pytest.mark.parametrize(
    "changes",
    [
        # a parameter of every preset needs no value in params; maps by modality name only the ones concerned
        {"presets": {"rna+adt": {"width": 2}, "rna+atac": {"width": 3}}, "variants": {"wide": {"width": 9}}},
        {"params": METHOD["params"] | {"n_features": {}}, "variants": {"few": {"n_features": {"rna": 100}}}},
        {"params": METHOD["params"] | {"net": None}, "variants": {"deep": {"net": {"depth": 3}}}},
    ],
)
def test_keys_that_need_no_value_in_params(project, changes):
    write(project / "config/methods/my_method.yaml", METHOD | {"modalities": BOTH} | changes)
    assert Benchmark(RUN, project).plan()


def test_budget_defined_only_by_other_methods(project):
    write(project / "config/methods/plain.yaml", METHOD | {"budgets": {}})
    assert Benchmark(RUN | {"methods": ["plain"], "budget": "quick"}, project).plan()


# ---- three modalities ----------------------------------------------------------------------------

THREE = ["rna", "atac", "adt"]


@pytest.mark.parametrize(
    ("supported", "sets"),
    [("any", [THREE]), ([["rna", "adt"], THREE], [THREE]), (BOTH, BOTH), ([["atac", "adt"]], [["atac", "adt"]])],
)
def test_method_runs_on_all_modalities_at_once_or_on_pairs(project, supported, sets):
    write(project / "config/datasets/tiny.yaml", DATASET | {"modalities": THREE})
    write(project / "config/methods/my_method.yaml", METHOD | {"modalities": supported, "presets": {}})
    benchmark = Benchmark(RUN, project)
    assert benchmark.sets("my_method", THREE) == sets
    assert benchmark.is_by_pairs("my_method", THREE) == (sets != [THREE])
    assert {job.reason for job in benchmark.plan()} == {""}


def test_method_that_supports_no_pair_is_unsupported(project):
    write(project / "config/methods/my_method.yaml", METHOD | {"modalities": [THREE], "presets": {}})
    reasons = {job.reason for job in Benchmark(RUN, project).plan() if job.method == "my_method"}
    assert reasons == {"does not support rna+adt"}


def test_each_pair_has_its_own_hyper_parameters(project):
    write(project / "config/datasets/tiny.yaml", DATASET | {"modalities": THREE})
    write(project / "config/methods/my_method.yaml", METHOD | {"modalities": BOTH})
    params = Benchmark(RUN, project).job_params("my_method", "small", THREE)
    assert {pair: values["n_latent"] for pair, values in params.items()} == {"rna+atac": 50, "rna+adt": 20}
    assert {values["lr"] for values in params.values()} == {0.4}
    assert Benchmark(RUN, project).job_params("my_method", "small", ["rna", "adt"])["n_latent"] == 20


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"mosaic": {"rna+atac": 0.5, "adt+rna": 0.5}}, "'adt+rna' may only name rna, atac, adt, in that order"),
        ({"mosaic": {"rna+atac": 0.5, "rna": 0.5}}, "no training cell is seen in adt"),
        ({"mosaic": {"rna+atac": 0.5, "adt": 0.4}}, "the fractions add up to 0.9"),
        ({"mosaic": {"rna+atac+adt": 1}, "paired_fraction": 0.5}, "keep only one of the two"),
    ],
)
def test_impossible_mosaics(project, split, message):
    write(project / "config/datasets/tiny.yaml", DATASET | {"modalities": THREE, "splits": {"a": split}})
    found = error(project)
    assert "config/datasets/tiny.yaml: splits.a.mosaic: " in found and message in found


def test_method_without_a_script_has_its_own_rule(project):
    own = {key: value for key, value in METHOD.items() if key != "script"}
    write(project / "config/methods/my_method.yaml", own)
    assert "my_method.yaml: script: no file rules/methods/my_method.smk" in error(project)
    (project / "rules/methods").mkdir(parents=True)
    (project / "rules/methods/my_method.smk").touch()
    assert Benchmark(RUN, project).plan()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n", "must hold a map"),
        ("a: [1\n", "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "not valid YAML: 'a' occurs twice .*line 3"),
        ("a: {b: 1, b: 1}\n", "not valid YAML: 'b' occurs twice .*line 1"),
        ("a: !!int x\n", "not valid YAML: invalid literal"),
        ("a: !!bool maybe\n", "not valid YAML: 'maybe'"),
        ("a: &x [*x]\n", "not valid YAML: Circular reference"),
        ("a: .inf\n", "not valid YAML: Out of range"),
        ("a: !!set {b}\n", "not valid YAML: Object of type set"),
        ("[" * 2000, "not valid YAML: nested too deeply"),
        ("{[1, 2]: 3}", "not valid YAML: .*unhashable key"),
        ("Größe: 1\n".encode("latin-1"), r"is not UTF-8 text \(byte 2\); save it as UTF-8"),
        ("a: 1\n".encode("utf-16"), r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_wrong_yaml(tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=part) as raised:
        read_yaml(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_keys_and_dates_stay_as_written(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("\ufeffa: {1: x, no: y, 2021-01-02: z, 01: w}\nb: &b {c: 2021-01-02}\nd: {<<: *b, e: é}\n", "utf-8")
    assert read_yaml(path) == {
        "a": {"1": "x", "no": "y", "2021-01-02": "z", "01": "w"},
        "b": {"c": "2021-01-02"},
        "d": {"c": "2021-01-02", "e": "é"},
    }


def test_folder_and_missing_file_are_no_configurations(tmp_path):
    assert "cannot be read (Is a directory); a YAML file is needed" in one_line_error(read_yaml, tmp_path)
    assert "no such file" in one_line_error(read_yaml, tmp_path / "x.yaml")


# ---- the files of this project -------------------------------------------------------------------


def pins():
    """Return the versions in the lock files."""
    text = "".join((ROOT / name).read_text().lower() for name in ("requirements.lock", "torch.lock"))
    return dict(re.findall(r"^([^#\s]+)==(\S+)", text, re.MULTILINE))


def test_lock_has_only_versions_that_every_index_has():
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9._-]+", name) and re.fullmatch(r"[0-9]+(\.[a-z0-9]+)*", version)


def test_everything_installed_but_torch_has_a_checksum():
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    packages = [entry for entry in entries if not entry.startswith("#")]
    assert len(packages) == len(pins()) - 1 and all("--hash=sha256:" in package for package in packages)
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()


def test_lock_holds_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[a-z0-9._-]+", line.lower()).group() for group in groups for line in group}
    assert names - {"clue-bench"} <= set(pins())


ON_CONDA = {"pytorch": "torch", "matplotlib-base": "matplotlib", "python-igraph": "igraph"}
ON_CONDA |= {"py-xgboost": "xgboost", "py-xgboost-cpu": "xgboost-cpu"}
"""Packages that have another name on conda-forge than on the package index."""
ON_NO_CHANNEL = {"scglue", "scib-metrics", "scmidas", "univi", "cobolt", "python-igraph", "champollion-omics"}
OTHERWISE = {"midas.yaml": {"torch": "2.10.0"}, "champollion.yaml": {"torch": "2.6.0", "anndata": "0.10.9"}}
"""Versions that cannot be those of the lock; the environment's file says why."""


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.name)
def test_conda_environment_has_the_versions_of_the_lock(path):
    known, found = pins() | OTHERWISE.get(path.name, {}), {}
    for line in read_yaml(path)["dependencies"]:
        if isinstance(line, str) and line != "pip":
            name, sign, version = re.fullmatch(r"([a-z0-9_-]+) (==?)([0-9][a-z0-9.]*)", line).groups()
            name = ON_CONDA.get(name, name)
            found[name] = version
            assert sign == "==" or name not in known, f"{path}: {line} is not an exact version"
        for package in line["pip"] if isinstance(line, dict) else []:
            exact = re.fullmatch(r"([a-z0-9._-]+)(?:==([0-9][a-z0-9.]*)| @ git\+https://\S+@[0-9a-f]{40})", package)
            assert exact, f"{path}: {package} names no version, and no commit"
            assert exact[1] in ON_NO_CHANNEL, f"{path}: {package} is on a channel, from which conda can choose a build"
            found[exact[1]] = exact[2]
    assert {"torch", "anndata", "faiss-cpu", "threadpoolctl"} <= set(found)
    for name, version in found.items():
        assert known.get(name, version) == version, f"{path}: {name} differs from requirements.lock"


def test_container_is_made_from_the_conda_environment():
    """One list of versions: the definition copies the environment's file and names no package versions."""
    text = (ROOT / "envs/apptainer.def").read_text()
    assert "envs/{{ env }}.yaml /opt/environment.yaml" in text and "--file /opt/environment.yaml" in text
    assert not re.findall(r"^[^#]*[a-z]=+[0-9]", text.replace("micromamba:2.0.5", ""), flags=re.MULTILINE)
