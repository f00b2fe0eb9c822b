"""Rehearse a run of the paper's data sets on simulated files, from download to report.

The rehearsal takes place in a copy of the project, so that no simulated file is ever mistaken for a real one. The copy
differs in the run's settings, the numbers to expect, and the numbers of cells in splits, which are all printed. The
simulated files are in a mirror, which is tried before the real addresses.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from clue.benchmark.config import ORACLE, load, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program
from tools import paper_files

PARTS = ("Snakefile", "rules", "config", "envs", "scripts", "clue")
CONFIG = Path("config", "rehearsal.yaml")  # in the copy
RUN = "rehearsal"
# The competition's bucket serves one data set and has lost the other, which GEO serves instead.
SERVED = {"bmmc_cite": "bucket", "bmmc_multiome": "geo", "share_skin": "geo"}


def main(
    factor: float,
    folder: Path,
    cores: int,
    config: Path = Path("config/config.yaml"),
    methods: tuple[str, ...] = (),
    datasets: tuple[str, ...] = (),
    budget: str = "test",
) -> None:
    """Run the program in the project folder.

    Parameters
    ----------
    factor
        Size of the data sets; 1 is full size.
    folder
        Folder for the copy of the project; it is emptied first.
    cores
        How many jobs of one thread run at a time.
    config
        The run to rehearse.
    methods
        Methods to use instead of the default variants of the run's methods.
    datasets
        Data sets to use instead of the run's.
    budget
        The budget of each method.
    """
    copy = copy_project(Path.cwd(), folder)
    changes = {"methods": list(methods), "datasets": list(datasets), "budget": budget}
    rehearsed = configure(copy, config, {key: value for key, value in changes.items() if value})
    print(f"factor {factor}", flush=True)
    for name in dataset_names(rehearsed):
        write_dataset(copy, name, factor)
    command = [sys.executable, "-P", "scripts/run.py", "--config", str(CONFIG), "--cores", str(cores)]
    subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, check=False)
    report_stages(copy / "logs")
    check(copy)


# ---- the copy ------------------------------------------------------------------------------------


def copy_project(project: Path, folder: Path) -> Path:
    """Copy the files that the workflow needs; an earlier rehearsal is removed, but nothing else."""
    mark = folder / "served"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise BenchmarkError(f"{folder}: is not empty and holds no rehearsal; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    mark.mkdir(parents=True)
    for part in PARTS:
        copy = shutil.copytree if (project / part).is_dir() else shutil.copy2
        copy(project / part, folder / part)
    if (project / ".r").is_dir():  # an R installed by `make r`
        (folder / ".r").symlink_to(project.resolve() / ".r")
    return folder.resolve()


def configure(copy: Path, path: Path, changes: dict) -> dict:
    """Write the settings of a run, but with one seed, default variants, no GPU, and the settings in `changes`."""
    config = read_yaml(path)
    # Ablations are other settings of the same programs.
    defaults = dict.fromkeys(f"{name.partition('/')[0]}/default" for name in config["methods"])
    changes = {"run": RUN, "methods": list(defaults), "seeds": [0], "device": "cpu"} | changes
    config |= {**changes, "data_mirror": (copy / "served").as_uri()}
    for name in dataset_names(config):
        if name not in SERVED:
            known = ", ".join(SERVED)
            raise BenchmarkError(f"{path}: datasets: no simulated files of {name!r}; known: {known}")
    print(f"rehearsal of {path} with {changes}", flush=True)
    (copy / CONFIG).write_text(yaml.safe_dump(config))
    return config


def dataset_names(config: dict) -> list[str]:
    """Return the names of a run's data sets, each once."""
    return list(dict.fromkeys(entry.partition("/")[0] for entry in config["datasets"]))


def write_dataset(copy: Path, name: str, factor: float) -> None:
    """Write a data set's simulated files to the mirror, and the numbers to expect to its YAML."""
    path = copy / "config" / "datasets" / f"{name}.yaml"
    spec = read_yaml(path)
    cells = paper_files.simulate_dataset(name, factor)
    (copy / "served" / name).mkdir(parents=True)
    paper_files.WRITERS[name, SERVED[name]](cells, copy / "served" / name)
    for source in spec["sources"]:
        source.pop("expect", None)
        source["files"] = {file: {} for file in source["files"]}
    expect = paper_files.expected(cells)
    ratio = expect["n_cells"] / spec["expect"]["n_cells"]
    spec["splits"] = {split: shrunk(settings, ratio) for split, settings in spec["splits"].items()}
    spec["expect"] = expect
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    widths = ", ".join(f"{adata.n_vars} {modality}" for modality, adata in cells.items())
    sized = {split: settings for split, settings in spec["splits"].items() if "n_test" in settings}
    print(f"{name}: {cells['rna'].n_obs} cells, {widths}; expect: {json.dumps(expect)}", flush=True)
    print(f"{name}: splits of a number of cells: {json.dumps(sized)}", flush=True)


def shrunk(split: dict, ratio: float) -> dict:
    """Return a split whose numbers of cells, if it has any, are scaled by `ratio`."""
    sizes = {key: round(ratio * split[key]) for key in ("n_test", "n_train") if key in split}
    return split | {key: max(size, paper_files.MIN_CELLS) for key, size in sizes.items()}


# ---- checking the results ------------------------------------------------------------------------


def report_stages(logs: Path) -> None:
    """Print time and memory of download, preparation and splitting, as Snakemake measured them."""
    tables = {path: pd.read_csv(path, sep="\t", na_values="-") for path in sorted(logs.rglob("*.benchmark.tsv"))}
    rows = {str(path.relative_to(logs)).removesuffix(".benchmark.tsv"): table.iloc[0] for path, table in tables.items()}
    stages = {name: row for name, row in rows.items() if name.startswith(("download", "prepared")) or "/task" in name}
    columns = {"s": "seconds", "cpu_time": "cpu_seconds", "max_rss": "peak_memory_mb"}
    print(pd.DataFrame(stages).T[[*columns]].rename(columns=columns).astype(float).round(1).to_string())


def check(copy: Path) -> None:
    """Check the results of the run; a method that needs another environment than Python's may be missing here.

    Raises
    ------
    BenchmarkError
        If another job failed, the oracle is not perfect, or there is no report.
    """
    results = copy / "results" / RUN
    for path in (results / "report.html", results / "metrics.tsv"):
        if not path.exists():
            raise BenchmarkError(f"{path}: was not made; see the messages above")
    faults = []
    failures = pd.read_csv(results / "failures.tsv", sep="\t", keep_default_na=False)
    for row in failures[failures["status"] == "failed"].itertuples():
        job = f"{row.dataset}/{row.split}/{row.method}/{row.variant}"
        if row.method != ORACLE and load("methods", row.method, copy)["env"] != "python":
            print(f"not on this machine: {job}: {row.reason}")
        else:
            faults.append(f"{job} ({row.reason}; {row.log})")
    table = pd.read_csv(results / "metrics.tsv", sep="\t", keep_default_na=False)
    # The oracle is perfect by construction, so pairs that were lost on the way would show.
    perfect = {"match_score": 1.0, "foscttm": 0.0}
    oracle = table[(table["method"] == ORACLE) & table["metric"].isin(perfect)]
    wrong = oracle[~((oracle["value"].astype(float) - oracle["metric"].map(perfect)).abs() < 1e-6)]
    faults += [f"oracle {row.dataset}/{row.split}: {row.metric} is {row.value}" for row in wrong.itertuples()]
    if faults:
        raise BenchmarkError(f"{results}: {len(faults)} faults: {'; '.join(faults)}")
    n_jobs = table[["dataset", "split", "method", "variant"]].drop_duplicates().shape[0]
    print(f"rehearsal: {n_jobs - len(failures)} of {n_jobs} jobs ok")


if __name__ == "__main__":
    run_program(main)
