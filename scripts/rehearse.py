"""Rehearse a run of the paper's data sets: simulated files of them, served on this machine, from download to report.

In a copy of the project, so that no simulated file is ever taken for a real one. The copy differs in four things,
which are printed: the addresses of the sources, the numbers to expect, the numbers of cells in splits, and the run's
settings.
"""

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import yaml

from clue.benchmark import rehearsal
from clue.benchmark.collect import log_path
from clue.benchmark.config import ORACLE, Benchmark, Job, read_yaml
from clue.benchmark.errors import BenchmarkError, run_program

PARTS = ("Snakefile", "rules", "config", "envs", "scripts", "clue")
CONFIG = Path("config", "rehearsal.yaml")  # of the copy
RUN = "rehearsal"
# The competition's bucket serves one data set and has lost the other, for which GEO steps in.
SERVED = {"bmmc_cite": "bucket", "bmmc_multiome": "geo", "share_skin": "geo"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program in the project folder."""
    parser = argparse.ArgumentParser(description="Rehearse a run of the paper's data sets on simulated files.")
    parser.add_argument("--config", type=Path, default="config/config.yaml", help="the run to rehearse")
    parser.add_argument("--factor", type=float, required=True, help="size of the data sets, 1 is full size")
    parser.add_argument("--folder", type=Path, required=True, help="where the copy of the project goes; emptied first")
    parser.add_argument("--cores", type=int, required=True, help="how many jobs of one thread run at a time")
    parser.add_argument("--methods", nargs="*", help="in place of the default variants of the run's methods")
    parser.add_argument("--datasets", nargs="*", help="in place of those of the run")
    parser.add_argument("--budget", default="test", help="the budget of each method")
    arguments = parser.parse_args(argv)
    copy = copy_project(Path.cwd(), arguments.folder)
    with serving(copy / "served") as address:
        config = configure(copy, address, arguments)
        for name in dataset_names(config):
            write_dataset(copy, name, arguments.factor, address)
        succeeded = run(copy, arguments.cores)
    report_stages(copy / "logs")
    check(copy, Benchmark(config, copy))
    if not succeeded:
        print("the run's exit status is not 0, for the methods named above")


# ---- the copy ------------------------------------------------------------------------------------


def copy_project(project: Path, folder: Path) -> Path:
    """Copy what the workflow needs; an earlier rehearsal is removed, anything else is not."""
    mark = folder / "served"
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise BenchmarkError(f"{folder}: is not empty and holds no rehearsal; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    mark.mkdir(parents=True)
    for part in PARTS:
        source, target = project / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    if (project / ".r").is_dir():  # an R that `make r` has made
        (folder / ".r").symlink_to(project.resolve() / ".r")
    # Real files have these checksums, simulated ones do not.
    (folder / "config" / "datasets" / "SHA256SUMS").unlink(missing_ok=True)
    return folder.resolve()


def configure(copy: Path, address: str, arguments: argparse.Namespace) -> dict:
    """Write the settings: those of the run, but for a small budget, one seed, default variants and no GPU."""
    config = read_yaml(arguments.config)
    # Ablations are other settings of the same programs.
    methods = arguments.methods or list(
        dict.fromkeys(f"{name.partition('/')[0]}/default" for name in config["methods"])
    )
    changes = {"run": RUN, "methods": methods, "seeds": [0], "budget": arguments.budget, "device": "cpu"}
    if arguments.datasets:
        changes["datasets"] = arguments.datasets
    config |= changes
    for name in dataset_names(config):
        if name not in SERVED:
            known = ", ".join(SERVED)
            raise BenchmarkError(f"{arguments.config}: datasets: no simulated files of {name!r}; known: {known}")
    how = f"{changes}, factor {arguments.factor}, files from {address}"
    print(f"rehearsal of {arguments.config} with {how}", flush=True)
    (copy / CONFIG).write_text(yaml.safe_dump(config))
    return config


def dataset_names(config: dict) -> list[str]:
    """Return the names of a run's data sets, each once."""
    return list(dict.fromkeys(entry.partition("/")[0] for entry in config["datasets"]))


def write_dataset(copy: Path, name: str, factor: float, address: str) -> None:
    """Write a data set's simulated files where the server finds them, and send its YAML there."""
    path = copy / "config" / "datasets" / f"{name}.yaml"
    spec = read_yaml(path)
    cells = rehearsal.simulate_dataset(name, factor)
    for source in spec["sources"]:
        place = "".join(urlsplit(source["base"])[1:3])
        if source["name"] == SERVED[name]:
            rehearsal.WRITERS[name, source["name"]](cells, copy / "served" / place)
        source["base"] = f"{address}/{place}"
        source.pop("expect", None)
        for facts in source["files"].values():
            for checksum in ("size", "md5", "sha256"):
                facts.pop(checksum, None)
    expect = rehearsal.expected(cells)
    ratio = expect["n_cells"] / spec["expect"]["n_cells"]
    spec["splits"] = {split: shrunk(settings, ratio) for split, settings in spec["splits"].items()}
    spec["expect"] = expect
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    widths = ", ".join(f"{adata.n_vars} {modality}" for modality, adata in cells.items())
    print(f"{name}: {cells['rna'].n_obs} cells, {widths}; expect: {json.dumps(expect)}", flush=True)
    sized = {split: settings for split, settings in spec["splits"].items() if "n_test" in settings}
    if sized:
        print(f"{name}: splits: {json.dumps(sized)}", flush=True)


def shrunk(split: dict, ratio: float) -> dict:
    """Return a split whose numbers of cells, where it names some, are in proportion to those of the data set."""
    sizes = {key: round(ratio * split[key]) for key in ("n_test", "n_train") if key in split}
    return split | {key: max(size, rehearsal.MIN_CELLS) for key, size in sizes.items()}


# ---- server and run ------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; requests go to a log file, not among the messages of the run."""

    def log_message(self, format: str, *values: object) -> None:
        """Append one line to ``requests.log``."""
        with open(Path(self.directory, "..", "requests.log"), "a") as log:
            log.write(f"{self.log_date_time_string()} {format % values}\n")


@contextmanager
def serving(folder: Path):
    """Serve a folder over HTTP on this machine while the block lasts; give the address."""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def run(copy: Path, cores: int) -> bool:
    """Run the workflow in the copy, as `make run` does; tell whether every job succeeded."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-P", "scripts/run.py", "--config", str(CONFIG), "--cores", str(cores)]
    return subprocess.run(command, cwd=copy, env=environment).returncode == 0


# ---- what must have come out ---------------------------------------------------------------------


def check(copy: Path, benchmark: Benchmark) -> None:
    """Check the tables; a method of another environment than Python's may be missing here, but must say why.

    Raises
    ------
    BenchmarkError
        If a row that must be there is not, the oracle is not perfect, or a figure or the report is missing.
    """
    results = copy / "results" / RUN
    for path in (results / "report.html", results / "figures" / "comparison.png", results / "tables" / "summary.tsv"):
        if not path.exists():
            raise BenchmarkError(f"{path}: was not made; see the messages above")
    table = pd.read_csv(results / "metrics.tsv", sep="\t", keep_default_na=False)
    n_ok, faults = 0, []
    for job in benchmark.plan():
        rows = table[(table[["dataset", "split", "method", "variant"]] == [*_names(job)]).all(axis=1)]
        status = set(rows["status"])
        if status == {"ok"}:
            n_ok += 1
        elif job.reason:
            continue
        elif _may_be_missing(job, benchmark) and len(rows) and all(rows["reason"]):
            print(f"not on this machine: {'/'.join(_names(job))}: {rows['reason'].iloc[0]}")
        else:
            faults.append(f"{'/'.join(_names(job))} ({', '.join(status) or 'no row'}; {log_path(job, copy)})")
    faults += _imperfect(table)
    if faults:
        raise BenchmarkError(f"{results / 'metrics.tsv'}: {len(faults)} faults: {'; '.join(faults)}")
    print(f"rehearsal: {n_ok} of {len(benchmark.plan())} jobs ok")


def report_stages(logs: Path) -> None:
    """Print time and memory of download, preparation and splitting, and of all jobs, as Snakemake measured them."""
    tables = {path: pd.read_csv(path, sep="\t", na_values="-") for path in sorted(logs.rglob("*.benchmark.tsv"))}
    columns = {"s": "seconds", "cpu_time": "cpu_seconds", "max_rss": "peak_memory_mb"}
    rows = pd.concat(tables)[list(columns)].rename(columns=columns).droplevel(1)
    rows.index = [str(path.relative_to(logs)).removesuffix(".benchmark.tsv") for path in rows.index]
    early = rows[[name.startswith("download/") or name.endswith(("/prepare", "/task")) for name in rows.index]]
    print(early.round(1).to_string())
    print(
        f"all {len(rows)} jobs: {rows['cpu_seconds'].sum():.0f} CPU-seconds, peak {rows['peak_memory_mb'].max():.0f} MB"
    )


def _may_be_missing(job: Job, benchmark: Benchmark) -> bool:
    return job.method != ORACLE and benchmark.methods[job.method]["env"] != "python"


def _names(job: Job) -> tuple[str, str, str, str]:
    return job.dataset, job.split, job.method, job.variant


def _imperfect(table: pd.DataFrame) -> list[str]:
    """Return what shows that pairs were lost on the way: the oracle is perfect by construction."""
    oracle = table[(table["method"] == ORACLE) & (table["status"] == "ok")]
    perfect = {"match_score": 1.0, "foscttm": 0.0}
    wrong = oracle[oracle["metric"].isin(perfect)]
    wrong = wrong[(wrong["value"].astype(float) - wrong["metric"].map(perfect)).abs() > 1e-6]
    return [f"oracle {row.dataset}/{row.split}: {row.metric} is {row.value}" for row in wrong.itertuples()]


if __name__ == "__main__":
    run_program(main)
