"""Show where a run stands, from Snakemake's plan, logs, Slurm's queue and this machine's processes."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from clue.benchmark.errors import one_line, without_control_codes
from clue.benchmark.running.cluster import SLURM_LOGS, slurm_jobs
from clue.benchmark.running.recovery import processes_at_work

STATES = ("done", "running", "queued", "failed", "waiting")
_WHY_SLURM_ENDED_IT = re.compile(
    r"(?:slurmstepd|srun|slurmd)(?:-\S+)?: error: (.*(?:CANCELLED|limit|oom|Killed|Node fail).*)", re.I
)
_IS_REASON = re.compile(
    r"error|exception|interrupt|\b(?:fault|abort|halted|killed|no space|not found|SIG[A-Z]{2})", re.IGNORECASE
)
"""Words that mark the last line of a log as the reason of a failure."""
_WANTS_MORE = re.compile(r"MemoryError|[Oo]ut of memory|\bSIG[A-Z]{2,}")
LONGEST_REASON = 300


@dataclass(frozen=True, order=True)
class Step:
    """One job of the workflow.

    Attributes
    ----------
    rule, wildcards
        Its rule, and the values of the rule's wildcards.
    output, log
        The first file that it makes, and its log, relative to the project.
    is_due
        Whether it has yet to be made, or to be made again.
    is_ready
        Whether no step that it depends on is due.
    """

    rule: str
    wildcards: tuple[str, ...]
    output: str
    log: str
    is_due: bool = True
    is_ready: bool = True

    @property
    def name(self) -> str:
        """The name to show."""
        return " ".join([self.rule, "/".join(self.wildcards)]).strip()

    @property
    def slurm_name(self) -> str:
        """The job's name in the comment that the Slurm plugin gives it."""
        return f"rule_{self.rule}" + (f"_wildcards_{'_'.join(self.wildcards)}" if self.wildcards else "")


@dataclass(frozen=True)
class Standing:
    """A step, its state (one of `STATES`), and a short text that says why, where, or how far."""

    step: Step
    state: str
    detail: str = ""


# ---- the state of each step ----------------------------------------------------------------------


def standings(steps: Sequence[Step], root: Path) -> list[Standing]:
    """Return the state of each step of a run."""
    queue = {job.comment: job for job in slurm_jobs(root)}
    open_logs = _open_logs(root)
    return [_standing(step, root, queue, open_logs) for step in steps]


def _standing(step: Step, root: Path, queue: dict, open_logs: dict[str, float]) -> Standing:
    queued, log, at_work = queue.get(step.slurm_name), root / step.log, ""
    if queued and queued.state == "PENDING":
        return Standing(step, "queued", f"Slurm job {queued.number} {queued.where}")
    if queued:
        at_work = f"Slurm job {queued.number} on {queued.where}"
    elif step.log in open_logs:
        at_work = f"{(time.time() - open_logs[step.log]) / 60:.0f} min"
    if at_work:
        return Standing(step, "running", f"{at_work}: {last_line(log)}".rstrip(": "))
    if not step.is_due:
        return Standing(step, "done")
    has_ended = log.exists() or slurm_log(step.rule, step.wildcards, root)
    if step.is_ready and has_ended and not (root / step.output).exists():
        return Standing(step, "failed", failure_reason(step, root))
    return Standing(step, "waiting")


def _open_logs(root: Path) -> dict[str, float]:
    """Return the logs that jobs on this machine have open, with the times at which the jobs were started."""
    found = {}
    for process in processes_at_work(root):
        try:
            for file in process.open_files():
                if file.path.startswith(f"{root}/logs/"):
                    found[str(Path(file.path).relative_to(root))] = process.create_time()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


# ---- why a step failed ---------------------------------------------------------------------------


def failure_reason(step: Step, root: Path) -> str:
    """Return one line: the method's own error, else why Slurm ended the job, else the last line of its log."""
    reason = recorded_error(root / step.output) or slurm_reason(step.rule, step.wildcards, root)
    return reason or reason_in_log(last_line(root / step.log))


def reason_in_log(line: str) -> str:
    """Return the reason of a failure from the last line of a log; a killed process leaves none there."""
    if _IS_REASON.search(line):
        return line
    return "ended without a message, as a killed process does" + (f"; its log ends in: {line}" if line else "")


def recorded_error(output: Path) -> str:
    """Return the error that a method has left in ``failure.json``; an empty text if the file cannot be read."""
    if output.name != "embedding.h5ad":
        return ""
    try:
        error = json.loads(output.with_name("failure.json").read_text())["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return one_line(str(error))


def has_explained(outputs: Sequence[str], logs: Sequence[str]) -> bool:
    """Return whether a failed job has explained its error itself, so that another try would fail in the same way.

    It has if its method has left ``failure.json``, or if its log ends in a program's ``error: …``. A lack of memory
    does not count, since the next try gets more.
    """
    errors = [recorded_error(Path(output)) for output in outputs]
    errors += [line for log in logs if (line := last_line(Path(log))).startswith("error: ")]
    return any(error and not _WANTS_MORE.search(error) for error in errors)


def slurm_reason(rule: str, wildcards: Sequence[str], root: Path) -> str:
    """Return why Slurm ended the last job of a rule with these wildcards; an empty text if it did not."""
    log = slurm_log(rule, wildcards, root)
    if not log:
        return ""
    found = _WHY_SLURM_ENDED_IT.search(log.read_text(errors="replace"))
    return f"Slurm: {found.group(1).strip('* ')}" if found else ""


def slurm_log(rule: str, wildcards: Sequence[str], root: Path) -> Path | None:
    """Return the log of the batch script of the last Slurm job of a rule with these wildcards, if there was one."""
    folder = root / SLURM_LOGS / f"rule_{rule}" / "_".join(wildcards)
    return max(folder.glob("*.log"), key=lambda path: path.stat().st_mtime, default=None)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty; a progress bar's last state counts as one."""
    if not log.exists():
        return ""
    with open(log, "rb") as file:
        file.seek(max(log.stat().st_size - 4096, 0))
        lines = re.split(r"[\r\n]+", file.read().decode(errors="replace"))
    shown = (without_control_codes(line).strip() for line in reversed(lines))
    return next((line[:LONGEST_REASON] for line in shown if line), "")


# ---- to print ------------------------------------------------------------------------------------


def report(found: list[Standing]) -> list[str]:
    """Return lines to print: how many steps are in each state, then those at work or queued, then those that failed."""
    counts = {state: sum(standing.state == state for standing in found) for state in STATES}
    lines = [f"{', '.join(f'{n} {state}' for state, n in counts.items() if n)} of {len(found)} steps"]
    for standing in found:
        if standing.state in ("running", "queued"):
            lines.append(f"{standing.state:8} {standing.step.name}: {standing.detail}")
    return [*lines, *failures(found)]


def failures(found: list[Standing]) -> list[str]:
    """Return a line per failed step: its name, why, and its log."""
    return [
        f"failed   {standing.step.name}: {standing.detail} (log: {standing.step.log})"
        for standing in found
        if standing.state == "failed"
    ]
