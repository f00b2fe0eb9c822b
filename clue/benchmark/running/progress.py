"""Show a run's progress, read from Snakemake's log: a bar, the jobs at work in words, and failures as they come."""

import re
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from clue.benchmark.config import Benchmark
from clue.benchmark.running.status import last_line, reason_in_log

STARTS = re.compile(r"(?:local)?(?:rule|checkpoint) (\w+):$")
FAILS = re.compile(r"Error in rule (\w+):$")
FIELD = re.compile(r"    (jobid|wildcards|log|resources): (.*)$")
ENDS = re.compile(r"Finished jobid: (\d+) ")
AGAIN = re.compile(r"Trying to restart job (\d+)\.")
TOTAL = re.compile(r"total +(\d+)$")
IN_ALL = re.compile(r"(\d+) steps in all$")
"""Pattern of the line that rules/run.smk prints at the start; Snakemake itself does not count what is already done."""
COUNT = re.compile(r"(\d+) of (\d+) steps ")
LAST = re.compile(r"failed   |No method has scores|Finished jobs are kept|Nothing to be done")
WRONG = re.compile(r"(\w*(?:Error|Exception)\b.*:$|error: )")
"""Pattern of a line in which Snakemake, or a program before it, says why nothing could be started."""
TARGETS = ("all", "downloaded")


class Progress:
    """The state of a run, read from the lines of Snakemake's log.

    Parameters
    ----------
    benchmark
        The run, for the labels of methods and data sets.
    terminal
        Whether to draw a bar; otherwise a line is printed per job.

    Attributes
    ----------
    at_work
        The jobs at work in words, by job number.
    n_failed
        How many jobs have failed so far, including those that are tried again.
    last
        Lines to print at the end: what failed, and how to go on.
    wrong
        Lines that say why nothing could be started, if so.
    """

    def __init__(self, benchmark: Benchmark, terminal: bool):
        self.benchmark = benchmark
        self.at_work: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self.n_failed = 0
        self.last: list[str] = []
        self.wrong: list[str] = []
        self._bar = tqdm(disable=not terminal, bar_format="planning")
        self._n_steps = self._n_left = 0
        self._rule, self._job, self._wildcards, self._failing = "", "", "", False

    def read(self, line: str) -> None:
        """Process one line of the log."""
        line = line.rstrip("\n")
        if self.wrong or WRONG.match(line):
            self.wrong.append(line)
        if found := STARTS.match(line):
            self._rule, self._wildcards, self._failing = found[1], "", False
        elif found := FAILS.match(line):
            self._rule, self._failing = found[1], True
        elif found := FIELD.match(line):
            self._read_field(*found.groups())
        elif found := ENDS.search(line):
            self.at_work.pop(found[1], None)
        elif found := TOTAL.match(line):
            self._show_left(int(found[1]))
        elif found := IN_ALL.match(line):
            self._n_steps = int(found[1])
            self._bar.bar_format = "{n_fmt} of {total_fmt} steps |{bar:20}| {remaining} left{postfix}"
            self._bar.reset(self._n_steps)
            self._bar.initial = self._bar.n = self._n_steps - self._n_left
        elif found := COUNT.match(line):
            self._show_left(int(found[2]) - int(found[1]))
        elif found := AGAIN.search(line):
            self._say(f"tried again: {self._labels[found[1]]}")
        elif LAST.match(line):
            self.last.append(line)
        self._bar.set_postfix_str("; ".join(self.at_work.values()))

    def _show_left(self, n: int) -> None:
        self._n_left = max(n - 1, 0)  # without the target itself, such as `all`
        if self._n_steps:
            self._bar.update(self._n_steps - self._n_left - self._bar.n)

    def _read_field(self, key: str, value: str) -> None:
        if key == "jobid":
            self._job = value
        elif key == "wildcards":
            self._wildcards = value
        elif key == "resources" and not self._failing and self._rule not in TARGETS:
            wildcards = dict(pair.split("=", 1) for pair in self._wildcards.split(", ") if pair)
            self.at_work[self._job] = self._labels[self._job] = job_label(self.benchmark, self._rule, wildcards)
            if self._bar.disable:
                n_done = self._n_steps - self._n_left
                self._say(f"{n_done} of {self._n_steps} steps done; at work: {self.at_work[self._job]}")
        elif key == "log" and self._failing:
            self.n_failed += 1
            log = value.partition(" (check")[0]
            reason = reason_in_log(last_line(Path(log)))
            self._say(f"failed: {self.at_work.pop(self._job, self._rule)}: {reason} (log: {log})")

    def _say(self, line: str) -> None:
        if self._bar.disable:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.leave = False
        self._bar.close()


def job_label(benchmark: Benchmark, rule: str, wildcards: Mapping[str, str]) -> str:
    """Return a job in words: ``CLUE, PBMC CITE-seq donors, seed 1``."""
    method = wildcards.get("method", rule)
    label = benchmark.methods[method]["label"] if method in benchmark.methods else method.replace("_", " ")
    if wildcards.get("variant", "default") != "default":
        label += f" ({wildcards['variant']})"
    if "method" in wildcards:
        label = f"scores of {label}"
    dataset = wildcards.get("dataset")
    data = benchmark.datasets.get(dataset, {}).get("label") or dataset
    seed = f"seed {wildcards['seed']}" if "seed" in wildcards else None
    place = " ".join(filter(None, [data, wildcards.get("split")]))
    return ", ".join(filter(None, [label, place, seed]))
