"""Show where a run stands (`make status`). It may be called at any time, even while the run is at work."""

from pathlib import Path

from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.program import run_program
from clue.benchmark.running.cluster import SLURM_LOGS
from clue.benchmark.running.recovery import other_host, snakemakes
from clue.benchmark.running.status import report, standings
from clue.benchmark.running.steps import planned_steps

PROJECT = Path(__file__).resolve().parents[1]


def main(config: Path) -> None:
    """Run the program."""
    benchmark = Benchmark(read_yaml(config), PROJECT, str(config))
    print(f"run {benchmark.config['run']}: {_at_work(Path.cwd())}")
    steps = planned_steps(config, cluster=Path(SLURM_LOGS).exists())
    print("\n".join(report(standings(steps, Path.cwd()))))


def _at_work(folder: Path) -> str:
    for process in snakemakes(folder):
        words = process.cmdline()
        config = words[words.index("--configfile") + 1] if "--configfile" in words else "config/config.yaml"
        return f"Snakemake is at work in this folder (process {process.pid}, {config})"
    if owner := other_host(folder):
        return f"last started on {owner}; what runs on that machine itself can only be seen there"
    return "Snakemake is not at work"


if __name__ == "__main__":
    run_program(main)
