"""Print the estimated cost of a run: jobs, hours and disk, from its configuration and docs/results/times.tsv alone."""

from pathlib import Path
from typing import Any

import pandas as pd

from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.program import run_program
from clue.benchmark.running.cost import TIMES, costs, planned, raw_gb, read_times
from clue.benchmark.running.steps import planned_steps

HEAD = {
    "jobs": "steps",
    "hours": "core hours",
    "reserved_hours": "reserved",
    "gpu_hours": "GPU hours",
    "reserved_gpu_hours": "reserved",
    "disk_gb": "disk (GB)",
}
MODEL = """\
Steps: those that `make status` counts. Other: downloads, tables and figures; their time, minutes, is left out.
Core hours: the time measured x (training steps that the parameters ask for / those measured) x (features / features
measured); for jobs that do not train in steps, cells count instead. Training that stops early takes less. GPU hours are
the part of them that a job with a GPU takes. Reserved: cores or GPUs x the time that the YAMLs ask for."""


def main(config: Path) -> None:
    """Run the program in the project folder."""
    benchmark = Benchmark(read_yaml(config), where=str(config))
    found, used = costs(planned(benchmark, planned_steps(config)), read_times(Path()))
    print(f"run {benchmark.config['run']} ({config}), device {benchmark.config['device']}\n")
    print("\n".join([table(found), "", *notes(benchmark, found, used), "", f"Measured ({TIMES}):", *origins(used)]))


def table(found: pd.DataFrame) -> str:
    """Return a line per rule, and their sums; ``?`` marks jobs of unknown cost."""
    rows = found.rename_axis(None)
    rows.loc["all"] = rows.sum()
    shown = rows[list(HEAD)].map("{:,.1f}".format)
    shown["jobs"] = rows["jobs"].map("{:,.0f}".format)
    for name in ("hours", "gpu_hours", "disk_gb"):
        shown[name] = (
            shown[name].mask(rows["unknown"] > 0, shown[name] + " + ?").mask(rows["unknown"] == rows["jobs"], "?")
        )
    return shown.set_axis(HEAD.values(), axis=1).to_string()


def notes(benchmark: Benchmark, found: pd.DataFrame, used: dict[str, list[Any]]) -> list[str]:
    """Return notes on what the numbers mean, and on what they leave out."""
    raw = {name: raw_gb(spec) for name, spec in benchmark.datasets.items()}
    untold = ", ".join(name for name, size in raw.items() if size is None)
    lines = [
        f"Raw files, in addition: {sum(filter(None, raw.values())):.1f} GB{f' + ? ({untold})' if untold else ''}",
        MODEL,
    ]
    if unknown := list(found.index[found["unknown"] > 0]):
        lines.append(f"?: never measured, or of a data set whose YAML gives no numbers: {', '.join(unknown)}.")
    if benchmark.config["device"] == "cuda" and not any(row.device == "cuda" for row in used):
        lines.append("No time was measured on a GPU: GPU hours are the hours of one CPU core, an upper bound.")
    return lines


def origins(used: dict[Any, list[str]]) -> list[str]:
    """Return the measured rows in words, each with the data sets of the jobs that it stands for."""
    lines = []
    for row, datasets in used.items():
        steps = f" for {row.steps:,.0f} steps" if row.steps else ""
        steps += f", {row.setup_seconds:,.0f} of them before the first" if row.setup_seconds else ""
        size = f"{row.cells:,.0f} cells x {row.features:,.0f} features of {row.dataset}"
        where = ", ".join(filter(None, [row.machine or row.device, row.command, row.commit]))
        lines.append(f"  {row.what} ({', '.join(datasets)}): {row.seconds:,.0f} s{steps}, {size}; {where}")
    return lines


if __name__ == "__main__":
    run_program(main)
