"""Show a run's progress, read from Snakemake's log: a bar, the jobs at work in words, and failures as they come."""

import re
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from clue.benchmark.config import Benchmark
from clue.benchmark.running.status import last_line, reason_in_log, steps

STARTS = re.compile(r"(?:local)?(?:rule|checkpoint) (\w+):$")
FAILS = re.compile(r"Error in rule (\w+):$")
FIELD = re.compile(r"    (jobid|wildcards|log|resources): (.*)$")
ENDS = re.compile(r"Finished jobid: (\d+) \(Rule: (\w+)\)")
AGAIN = re.compile(r"Trying to restart job (\d+)\.")
PLANNED = re.compile(r"(\w+) +(\d+)$")
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
    download
        Whether the run ends once the raw files are there.

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

    def __init__(self, benchmark: Benchmark, terminal: bool, download: bool = False):
        self.benchmark = benchmark
        self.at_work: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self.n_failed = 0
        self.last: list[str] = []
        self.wrong: list[str] = []
        shape = "{n_fmt} of {total_fmt} steps |{bar:20}| {remaining} left{postfix}"
        # Count the steps of `make status`. Snakemake counts figures too, but no job that an earlier run has finished.
        rules = [step.rule for step in steps(benchmark) if step.rule == "download" or not download]
        self._rules, self._n_steps = set(rules), len(rules)
        self._n_done, self._is_planned = len(rules), False
        self._bar = tqdm(total=len(rules), disable=not terminal, bar_format=shape)
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
            if found[2] in self._rules:
                self._n_done += 1
                self._bar.update()
        elif found := AGAIN.search(line):
            self._say(f"tried again: {self._labels[found[1]]}")
        elif not self._is_planned and (found := PLANNED.match(line)):
            self._plan(found[1], int(found[2]))
        elif LAST.match(line):
            self.last.append(line)
        self._bar.set_postfix_str("; ".join(self.at_work.values()))

    def _plan(self, rule: str, n_jobs: int) -> None:
        if rule in self._rules:
            self._n_done -= n_jobs
        elif rule == "total":  # a second plan, after failures, only covers what is left to draw
            self._is_planned = True
            self._bar.reset()
            self._bar.initial = self._bar.n = self._n_done

    def _read_field(self, key: str, value: str) -> None:
        if key == "jobid":
            self._job = value
        elif key == "wildcards":
            self._wildcards = value
        elif key == "resources" and not self._failing and self._rule not in TARGETS:
            wildcards = dict(pair.split("=", 1) for pair in self._wildcards.split(", ") if pair)
            self.at_work[self._job] = self._labels[self._job] = job_label(self.benchmark, self._rule, wildcards)
            if self._bar.disable:
                self._say(f"{self._n_done} of {self._n_steps} steps done; at work: {self.at_work[self._job]}")
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
