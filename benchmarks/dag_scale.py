"""Time `snakemake --dry-run` for many jobs, compared with a floor: as many jobs of trivial rules.

    python benchmarks/dag_scale.py [--jobs 100 1000 10000] [--repeats 3]

The floor has the benchmark's shape, two jobs in a row for each result, and rules with one input, one output and one
line of shell. The two sides take turns. The output is their CPU seconds (medians, which other work on the machine
disturbs least), the ratio of these, and the median ratio of wall-clock times.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from measure import row

from clue.benchmark.config import ORACLE, Benchmark
from clue.benchmark.program import run_program

ROOT = Path(__file__).resolve().parents[1]
RUN = {"run": "scale", "datasets": ["pbmc_cite", "pbmc_multiome"], "methods": ["clue", "cca", "random"]}
FLOOR = """
rule all:
    input: expand("score/{{seed}}.tsv", seed=range({n}))
rule score:
    input: "embedding/{{seed}}.h5ad"
    output: "score/{{seed}}.tsv"
    shell: "cp {{input}} {{output}}"
rule embed:
    output: "embedding/{{seed}}.h5ad"
    shell: "touch {{output}}"
"""


def main(jobs: tuple[int, ...] = (100, 1000, 10000), repeats: int = 3) -> None:
    """Print a line per number of jobs.

    Parameters
    ----------
    jobs
        Numbers of jobs.
    repeats
        How often each side is timed.
    """
    row("jobs", "benchmark_cpu_s", "floor_cpu_s", "cpu_ratio", "wall_ratio")
    for n_jobs in jobs:
        with tempfile.TemporaryDirectory() as folder:
            benchmark, floor = _write(Path(folder), n_jobs)
            pairs = [(_dry_run(*benchmark), _dry_run(*floor)) for _ in range(repeats)]
        cpu = [statistics.median(times[0] for times in side) for side in zip(*pairs, strict=True)]
        wall = statistics.median(ours[1] / theirs[1] for ours, theirs in pairs)
        row(n_jobs, *cpu, cpu[0] / cpu[1], wall)


def _write(folder: Path, n_jobs: int) -> tuple[tuple[Path, list[str]], tuple[Path, list[str]]]:
    """Write both sides; return the folder and the options of each."""
    config, snakefile = folder / "config.yaml", folder / "Snakefile"
    # Each planned job is embedded and scored; only the oracle does not grow with the seeds.
    per_seed = 2 * sum(not job.reason and job.method != ORACLE for job in Benchmark(RUN | {"seeds": [0]}, ROOT).plan())
    config.write_text(yaml.safe_dump(RUN | {"seeds": list(range(max(round(n_jobs / per_seed), 1)))}))
    snakefile.write_text(FLOOR.format(n=n_jobs // 2))
    ours = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(config), "--directory", str(folder / "ours")]
    # The workflow refers to files of the project by relative paths.
    (folder / "ours").mkdir()
    (folder / "ours" / "config").symlink_to(ROOT / "config")
    return (folder, ours), (folder, ["--snakefile", str(snakefile), "--directory", str(folder / "floor")])


def _dry_run(folder: Path, options: list[str]) -> tuple[float, float]:
    """Return the CPU and wall-clock seconds of a dry run."""
    # The profiles' scheduler: the default one solves a linear programme over all jobs that are ready.
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "1"]
    command += ["--scheduler", "greedy", *options]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, wall


if __name__ == "__main__":
    run_program(main)
