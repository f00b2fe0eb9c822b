"""Fetch one file over HTTP with curl. It resumes after interruptions and names the file only once it is complete.

curl can resume a broken transfer of gigabytes. pooch and Snakemake's storage plugin for cached HTTP cannot, and
requests needs much code around it. curl also handles proxies, certificates, redirects and stalled connections, and it
is on nearly every machine and in envs/python.yaml.

What has arrived stays beside the file as ``.<name>.part``, with the server's headers in ``.<name>.part.headers``. A
later attempt asks for the rest of that version. If no header tells versions apart, it starts anew.
"""

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from clue.benchmark.data.sources import DownloadError

PROGRESS = 1 << 20
"""Bytes that an attempt must add to count as progress."""
NO_SUCH_RANGE = 416
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
LASTING = {1, 3, 4, 22, 47, 51, 60, 77}
"""Exit statuses of curl that another attempt would not change: a wrong address, certificate or answer."""
RANGE_IGNORED, WRITE_FAILED, HTTP_ERROR = 33, 23, 22
PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)


class LocalError(DownloadError):
    """The fault is on this machine, so another source would not help."""


@dataclass(frozen=True)
class Patience:
    """How long a download waits, in seconds, and how often it tries."""

    connect: int = 20
    stalled: int = 60
    """Time at less than 1 kB/s."""
    attempts: int = 5
    """Attempts in a row without progress. A connection that breaks after every gigabyte does not end a download."""
    pause: float = 5
    """Before the second attempt; doubled before each further one."""
    report: float = 10
    """Between two lines of progress."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def what_differs(path: Path, known: Mapping[str, Any]) -> str:
    """Return how a file differs from the known ``size``, ``md5`` and ``sha256``; an empty text if it does not."""
    size = path.stat().st_size if path.exists() else 0
    if not size:
        return "is empty"
    if size != known.get("size", size):
        return f"has {size:,} bytes, expected {known['size']:,}"
    for algorithm in ("md5", "sha256"):
        if algorithm in known and (found := digest(path, algorithm)) != known[algorithm]:
            return f"{algorithm} is {found}, expected {known[algorithm]}"
    return ""


def fetch(url: str, path: Path, known: Mapping[str, Any], patience: Patience, lock: int) -> None:
    """Download `url` to `path`.

    Parameters
    ----------
    url
        The address; redirects are followed.
    path
        The file to write; its folder must exist.
    known
        The known ``size``, ``md5`` and ``sha256``. Those that are given are checked; none is required.
    patience
        How long to wait and how often to try.
    lock
        Descriptor of the file lock that keeps other processes off `path`. curl inherits it, so the lock lasts as long
        as curl, even if this process is killed.

    Raises
    ------
    DownloadError
        If the file cannot be downloaded or is a different one. What has arrived is kept for the next attempt, unless it
        is wrong.
    """
    part = Part(path)
    most, n_faults = part.size(), 0
    while fault := _attempt(url, part, known, patience, lock):
        # curl's own retry is not used, since it begins again where this attempt began. A server that always sends the
        # same beginning makes no progress.
        n_faults = 1 if part.size() >= most + PROGRESS else n_faults + 1
        most = max(most, part.size())
        if n_faults >= patience.attempts:
            kept = f"; the {part.size():,} bytes that have arrived are kept" if part.size() else ""
            raise DownloadError(f"{url}: {fault} ({n_faults} attempts); check the network and run again{kept}")
        pause = patience.pause * 2 ** (n_faults - 1)
        print(f"{url}: {fault}; trying again in {pause:g} s", flush=True)
        time.sleep(pause)
    with open(part.path, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part.path, path)
    part.discard()


class Part:
    """The part of a file that has arrived, and the headers that came with it."""

    def __init__(self, path: Path):
        self.path = path.with_name(f".{path.name}.part")
        self.headers = path.with_name(f".{path.name}.part.headers")

    def size(self) -> int:
        """Return how many bytes have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def header(self, name: str) -> str:
        """Return a header of the server's last answer, after any redirects; empty if there is none."""
        text = self.headers.read_text("latin-1") if self.headers.exists() else ""
        found = re.findall(rf"^{name}: *(.*?)\s*$", text.rpartition("\nHTTP/")[2], re.IGNORECASE | re.MULTILINE)
        return found[-1] if found else ""

    def beginning(self) -> bytes:
        """Return the first bytes."""
        if not self.path.exists():
            return b""
        with open(self.path, "rb") as file:
            return file.read(100)

    def validator(self) -> str:
        """Return the header that identifies this version of the file. A weak ETag does not promise equal bytes."""
        etag = self.header("etag")
        return etag if etag and not etag.startswith("W/") else self.header("last-modified")

    def discard(self) -> None:
        """Delete what has arrived."""
        self.path.unlink(missing_ok=True)
        self.headers.unlink(missing_ok=True)


def _attempt(url: str, part: Part, known: Mapping[str, Any], patience: Patience, lock: int) -> str:
    """Request the missing bytes once and check the whole file. Return a fault that another attempt may avoid."""
    resumed = part.size() > 0 and part.validator() != ""
    if resumed:
        options = ["--continue-at", "-", "--header", f"If-Range: {part.validator()}"]
    else:
        part.discard()
        options = ["--dump-header", str(part.headers)]
    answer = _curl(url, [*options, "--output", str(part.path)], patience, lock, part)
    has_page = PAGE.match(part.beginning())
    if answer.exit in (0, RANGE_IGNORED) and (answer.is_page or has_page):
        if has_page or not resumed:
            part.discard()
        raise DownloadError(
            f"{url}: a web page was sent instead of the file; open the address in a browser to see what it says"
            " (a login, a maintenance notice, a proxy)"
        )
    if answer.status == NO_SUCH_RANGE and "sha256" in known and not what_differs(part.path, known):
        return ""  # everything had arrived; only the name was missing
    if answer.exit == RANGE_IGNORED or answer.status == NO_SUCH_RANGE:
        part.discard()
        return "the server does not send the rest of this version of the file; starting anew"
    if answer.exit == WRITE_FAILED:
        raise LocalError(f"{part.path}: cannot be written ({answer.message}); make room and run again")
    if answer.exit:
        if not part.size():
            part.discard()
        if answer.exit in LASTING and answer.status not in PASSING_STATUS:
            raise _lasting(url, answer)
        return answer.message
    if wrong := what_differs(part.path, known):
        part.discard()
        raise DownloadError(
            f"{url}: {wrong}; the source has changed the file, or it was damaged in transit: run again, or correct"
            " the YAML of the data set if the change is intended"
        )
    return ""


def check_exists(url: str, patience: Patience, lock: int) -> None:
    """Raise a `DownloadError` if there is no such file. `fetch` will notice a server that is down or busy."""
    answer = _curl(url, ["--head", "--output", os.devnull], patience, lock)
    if answer.exit == HTTP_ERROR and answer.status in (401, 403, 404, 410):
        raise _lasting(url, answer)


# ---- curl ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """How curl ended, and what the server answered last."""

    exit: int
    status: int
    is_page: bool
    message: str


def _curl(url: str, options: list[str], patience: Patience, lock: int, part: Part | None = None) -> _Answer:
    """Run curl, and from time to time print how much of the part has arrived."""
    command = ["curl", "--silent", "--show-error", "--fail", "--location", "--max-redirs", "10", "--globoff"]
    command += ["--proto", "=http,https", "--connect-timeout", str(patience.connect), "--speed-limit", "1000"]
    command += ["--speed-time", str(patience.stalled), "--write-out", "%{http_code} %{content_type}", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    try:
        process = subprocess.Popen([*command, "--url", url], pass_fds=[lock], **pipes)
    except FileNotFoundError as error:
        raise LocalError(
            "curl was not found on this machine; install it, or use the environment envs/python.yaml"
        ) from error
    with process:
        while True:
            try:
                output, errors = process.communicate(timeout=patience.report)
                break
            except subprocess.TimeoutExpired:
                if part:
                    total = part.header("content-length") or "?"
                    print(f"{part.path.name[1:-5]}: {part.size():,} of {total} bytes", flush=True)
    status, _, kind = output.partition(" ")
    message = re.sub(r"^curl: (\(\d+\) )?", "", (errors.splitlines() or [f"curl exited with {process.returncode}"])[-1])
    if process.returncode == HTTP_ERROR:
        phrase = {code.value: code.phrase for code in HTTPStatus}.get(int(status), "")
        message = f"the server answers {status} {phrase}".rstrip()
    is_page = kind.lower().startswith(("text/html", "application/xhtml"))
    return _Answer(process.returncode, int(status or 0), is_page, message)


def _lasting(url: str, answer: _Answer) -> DownloadError:
    return DownloadError(f"{url}: {answer.message}; correct the address in the YAML of the data set, or add a source")
