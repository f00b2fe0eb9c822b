"""Slurm: the settings of the site, and this checkout's jobs in the queue.

``profiles/slurm/config.yaml`` calls `slurm_site`; ``make resume`` and ``make status`` ask for the jobs.
"""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from clue.benchmark.config import check, read_yaml
from clue.benchmark.errors import BenchmarkError

CHECKOUT = Path(__file__).resolve().parents[3]
SCHEMA = CHECKOUT / "config" / "schemas" / "site.schema.yaml"
SITE_FILE = "slurm-site.yaml"
_IS_AWAY = re.compile("establish a config|process configuration|contact slurm controller")
"""Text in sbatch's message when it cannot reach a Slurm."""
EXAMPLE = "profiles/slurm/site.example.yaml"
PREFIX = "clue-bench"
"""The ``slurm-jobname-prefix`` of the profile."""
SLURM_LOGS = "logs/slurm"
"""The ``slurm-logdir`` of the profile; it exists if a job was ever submitted."""
CANCEL_SECONDS = 300


# ---- the site ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """The settings in ``slurm-site.yaml``.

    Attributes
    ----------
    account, qos
        As given to ``sbatch``; empty for the cluster's default.
    partitions
        The limits of each partition that the Slurm plugin knows, by name; empty for the cluster's default partition.
    file
        The file that was read.
    """

    account: str = ""
    qos: str = ""
    partitions: dict[str, dict[str, Any]] = field(default_factory=dict)
    file: str = SITE_FILE

    def most(self, limit: str, gpu: int) -> float:
        """Return the largest value of a limit over the partitions that accept a job; infinite if none is given."""
        fitting = [limits for limits in self.partitions.values() if limits.get("max_gpu", 0) >= gpu]
        return max((limits.get(limit, inf) for limits in fitting), default=inf)


def slurm_site(path: str | Path | None = None) -> Site:
    """Return the site's settings after Slurm has accepted them.

    Raises
    ------
    BenchmarkError
        If the file is wrong, or Slurm would refuse a job with these settings. Without Slurm only the file is checked,
        so that a dry run works anywhere.
    """
    site = read_site(path)
    if shutil.which("sbatch"):
        for partition in site.partitions or [""]:
            _check_accepted(site, partition)
    return site


def read_site(path: str | Path | None = None) -> Site:
    """Return the site's settings from its file; the defaults if there is no file.

    The file is `path` or else ``slurm-site.yaml`` in the current folder or in the checkout.
    """
    path = Path(path or _site_file())
    if not path.exists():
        return Site(file=str(path))
    data = check(read_yaml(path), SCHEMA, str(path))
    return Site(str(data["account"]), str(data["qos"]), data["partitions"], str(path))


def _site_file() -> Path:
    # Absolute, since Snakemake changes to another folder if it has --directory.
    places = [folder / SITE_FILE for folder in (Path.cwd(), CHECKOUT)]
    return next((place for place in places if place.exists()), Path(SITE_FILE))


def _check_accepted(site: Site, partition: str) -> None:
    """Ask Slurm whether it would accept a job of one minute, without running it."""
    words = {"--account": site.account, "--qos": site.qos, "--partition": partition}
    options = [f"{option}={value}" for option, value in words.items() if value]
    if reason := refusal(["--time=1", "--mem=1", *options]):
        if _IS_AWAY.search(reason):
            raise BenchmarkError(f"sbatch cannot reach Slurm: {reason}; start on a login node, or set SLURM_CONF")
        fix = f"fix {site.file}" if Path(site.file).exists() else f"copy {EXAMPLE} to {site.file} and fill it in"
        given = " ".join(options) or "no account or partition"
        raise BenchmarkError(f"{site.file}: Slurm refuses a job with {given}: {reason}; {fix}")


def refusal(options: Sequence[str]) -> str:
    """Return why Slurm would refuse a job with these options of ``sbatch``; an empty text if it would accept it."""
    command = ["sbatch", "--test-only", *options, "--wrap", "true"]
    done = subprocess.run(command, capture_output=True, text=True)
    errors = done.stderr.replace("allocation failure:", "").replace("sbatch: error:", "")
    return " ".join(errors.split()) if done.returncode else ""


# ---- jobs in the queue ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SlurmJob:
    """One job in the queue: its number, its state, its node or why it waits, and the rule and wildcards it is for."""

    number: str
    state: str
    where: str
    comment: str


def slurm_jobs(folder: Path) -> list[SlurmJob]:
    """Return the queued jobs that Snakemake has submitted from a folder; none if there is no Slurm.

    Slurm is not asked about a folder that never submitted a job, so a local run does not depend on its answer.

    Raises
    ------
    BenchmarkError
        If there is a Slurm but it does not answer.
    """
    if not (folder / SLURM_LOGS).exists() or not shutil.which("squeue"):
        return []
    done = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i\t%T\t%R\t%j\t%Z\t%k"], capture_output=True, text=True
    )
    if done.returncode:
        raise BenchmarkError(f"squeue: {' '.join(done.stderr.split())}; Slurm must answer first, so try again later")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [
        SlurmJob(number, state, where, comment)
        for number, state, where, name, workdir, comment in rows
        if workdir == str(folder) and name.startswith(f"{PREFIX}_")
    ]


def cancel(folder: Path) -> int:
    """Cancel a folder's jobs and return how many. Wait until they are gone, since they would write a new run's files.

    Raises
    ------
    BenchmarkError
        If a job is still there after `CANCEL_SECONDS`, for instance on a node that does not answer.
    """
    if jobs := slurm_jobs(folder):
        subprocess.run(["scancel", *(job.number for job in jobs)], check=True)
    end = time.monotonic() + CANCEL_SECONDS
    while left := slurm_jobs(folder):
        if time.monotonic() > end:
            numbers = " ".join(job.number for job in left)
            raise BenchmarkError(f"Slurm did not end job {numbers}; ask your administrator about node {left[0].where}")
        time.sleep(1)
    return len(jobs)
