"""Fetch one file over HTTP: resumed after any interruption, and given its name only when it is whole and right.

What has arrived is kept beside the file as ``.<name>.part``, with what the server said of its version in
``.<name>.part.json``: a later attempt, or a later process, asks for the rest, and starts anew where the file has
changed in between. requests knows proxies, certificates and redirects; resuming is ours, since no library of the
lock resumes and verifies (pooch verifies, but does not resume).
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import requests
import urllib3
from tqdm import tqdm

from clue.benchmark.files import atomic
from clue.benchmark.sources import DownloadError

CHUNK = 1 << 20
SPARE = 100 << 20
"""Bytes that must stay free on the disk."""
SLOWEST = 1 << 10
"""Bytes per second; a slower connection is taken for a stalled one."""
PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)

T = TypeVar("T")


class LocalError(DownloadError):
    """This machine is at fault, and another source would not help."""


class _PassingError(Exception):
    """A fault that another attempt may not meet."""


@dataclass(frozen=True)
class Patience:
    """How long a download waits, in seconds, and how often it tries."""

    connect: float = 20
    read: float = 60
    """Without a byte, or at less than `SLOWEST` on average."""
    attempts: int = 5
    """In a row, without anything new; a connection that breaks every gigabyte ends no download."""
    pause: float = 5
    """Before the second attempt; doubled before each further one."""

    def pauses(self, n_faults: int) -> float:
        """Return the pause after so many faults in a row."""
        return self.pause * 2 ** (n_faults - 1)


# ---- what is known of a file ---------------------------------------------------------------------


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    return _digest(Path(path), "sha256")


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def what_differs(path: Path, known: Mapping[str, Any]) -> str:
    """Return in what a file is not the known one (``size``, ``md5``, ``sha256``); nothing where it is."""
    if "size" in known and path.stat().st_size != known["size"]:
        return f"has {path.stat().st_size:,} bytes, expected {known['size']:,}"
    for algorithm in ("md5", "sha256"):
        if algorithm in known and (found := _digest(path, algorithm)) != known[algorithm]:
            return f"{algorithm} is {found}, expected {known[algorithm]}"
    return ""


def check_space(folder: Path, n_bytes: int) -> None:
    """Refuse what does not fit on the disk of `folder`, before it is tried."""
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE > free:
        raise LocalError(
            f"{folder}: {n_bytes:,} bytes are to come and {free:,} are free ({SPARE:,} must stay so);"
            " make room, or link data/raw to a larger disk, and run again"
        )


# ---- one file ------------------------------------------------------------------------------------


def size_of(url: str, patience: Patience) -> int | None:
    """Return the size of a file in bytes without fetching it; None where the server does not tell.

    Raises
    ------
    DownloadError
        If the server has no such file, or cannot be reached.
    """

    def ask() -> int | None:
        with _answer("HEAD", url, {}, patience) as response:
            if response.status_code in (405, 501):  # no HEAD here: the file itself will tell
                return None
            _check_status(response, url)
            _check_type(response, b"", url)
            return _length(response)

    return _persist(ask, lambda: 0, url, patience)


def fetch(url: str, path: Path, known: Mapping[str, Any], patience: Patience) -> None:
    """Download `url` to `path`.

    Parameters
    ----------
    url
        The address; redirects are followed.
    path
        The file to make, in a folder that is there; one process at a time may make it.
    known
        What is known of it: ``size``, ``md5``, ``sha256``; all are checked, none is needed.
    patience
        How long to wait and how often to try.

    Raises
    ------
    DownloadError
        If the file cannot be had or is another one. What has arrived is kept for the next attempt, unless it is
        wrong.
    """
    part = Part(path)
    _persist(lambda: _attempt(url, part, known, patience), part.size, url, patience)
    part.finish()


def _persist(attempt: Callable[[], T], n_received: Callable[[], int], url: str, patience: Patience) -> T:
    """Try until it works, or until `patience.attempts` in a row have brought nothing new."""
    most, n_faults = n_received(), 0
    while True:
        try:
            return attempt()
        except _PassingError as fault:
            # A server that always sends the same beginning brings nothing new either.
            n_faults = 1 if n_received() >= most + CHUNK else n_faults + 1
            most = max(most, n_received())
            if n_faults >= patience.attempts:
                kept = f"; the {n_received():,} bytes that have arrived are kept" if n_received() else ""
                raise DownloadError(
                    f"{url}: {fault} ({n_faults} attempts); check the network and run again{kept}"
                ) from fault
            pause = patience.pauses(n_faults)
            print(f"{url}: {fault}; again in {pause:g} s", flush=True)
            time.sleep(pause)


def _attempt(url: str, part: "Part", known: Mapping[str, Any], patience: Patience) -> None:
    """Receive what is missing, once, and check the whole."""
    at_once = not part.is_whole(known) and _receive(url, part, known, patience)
    if wrong := what_differs(part.path, known):
        part.discard()
        if not at_once:
            raise _PassingError(f"put together of several answers, the file {wrong}; starting anew")
        raise DownloadError(
            f"{url}: {wrong}; the source has changed the file or it was damaged on its way: run again,"
            f" or correct {known.get('where', 'the YAML of the data set')} if the change is meant"
        )


def _receive(url: str, part: "Part", known: Mapping[str, Any], patience: Patience) -> bool:
    """Append what is missing to the part, or begin it anew; tell whether it came in this one answer."""
    headers = part.request_for_the_rest(url, known)
    with _answer("GET", url, headers, patience) as response:
        if response.status_code == 416:
            part.discard()
            raise _PassingError("the server has no more than what is here; starting anew")
        _check_status(response, url)
        start = part.size() if response.status_code == 206 else 0
        _check_range(response, start, part)
        if headers and not start:
            print(f"{url}: the server sends the whole file, not the rest; starting anew", flush=True)
        total = _total(response, start, known, url)
        blocks = _blocks(response, patience)
        first = next(blocks, b"")
        _check_type(response, b"" if start else first, url)
        check_space(part.path.parent, (total or 0) - start)
        if not start:
            part.discard()
        part.note(url, response, total)
        try:
            _write(part, first, blocks, start, total)
        except OSError as error:  # of the disk: those of the network have become another
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            mend = "make room and run again; what has arrived is kept" if full else "mend it and run again"
            raise LocalError(f"{part.path}: cannot be written ({error.strerror}); {mend}") from error
    if total is not None and part.size() < total:
        raise _PassingError("the connection broke off")
    return not start


def _write(part: "Part", first: bytes, blocks: Iterator[bytes], start: int, total: int | None) -> None:
    with open(part.path, "ab" if start else "wb") as file, _progress(part.name, start, total) as bar:
        file.write(first)
        bar.update(len(first))
        for block in blocks:
            file.write(block)
            bar.update(len(block))


class Part:
    """What has arrived of a file, and of which version it is."""

    def __init__(self, path: Path):
        self.target = path
        self.name = path.name
        self.path = path.with_name(f".{path.name}.part")
        self.notes = path.with_name(f".{path.name}.part.json")

    def size(self) -> int:
        """Return how many bytes there are."""
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> dict[str, Any]:
        """Return what the server said: ``url``, ``etag``, ``modified``, ``total``; nothing where it is not known."""
        try:
            version = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            return {}
        return version if isinstance(version, dict) else {}

    def is_whole(self, known: Mapping[str, Any]) -> bool:
        """Tell whether all has arrived already: a process was killed between the last byte and the new name."""
        return self.size() > 0 and self.size() == known.get("size", self.version().get("total"))

    def request_for_the_rest(self, url: str, known: Mapping[str, Any]) -> dict[str, str]:
        """Return the headers that ask for what is missing; none where nothing tells that it is of the same file."""
        version = self.version()
        validator = (version.get("etag") or version.get("modified")) if version.get("url") == url else None
        if not self.size() or not (validator or "sha256" in known or "md5" in known):
            return {}
        return {"Range": f"bytes={self.size()}-"} | ({"If-Range": validator} if validator else {})

    def note(self, url: str, response: requests.Response, total: int | None) -> None:
        """Keep what the server says of the version."""
        said = {"url": url, "total": total, **_validators(response)}
        version = self.version() | {key: value for key, value in said.items() if value is not None}
        with atomic(self.notes) as temporary:
            temporary.write_text(json.dumps(version))

    def discard(self) -> None:
        """Forget what has arrived."""
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the whole file its name."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        self.notes.unlink(missing_ok=True)


# ---- the server's answer -------------------------------------------------------------------------


def _answer(method: str, url: str, headers: Mapping[str, str], patience: Patience) -> requests.Response:
    # The bytes as they are stored: a .gz must not be unpacked on its way.
    headers = {"Accept-Encoding": "identity", **headers}
    timeout = (patience.connect, patience.read)
    try:
        return requests.request(method, url, headers=headers, timeout=timeout, stream=True, allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _PassingError(_reason(error)) from error
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {_reason(error)}; correct the address") from error


def _check_status(response: requests.Response, url: str) -> None:
    answer = f"the server answers {response.status_code} {response.reason or ''}".rstrip()
    if response.status_code in PASSING_STATUS:
        raise _PassingError(answer)
    if response.status_code not in (200, 206):
        raise DownloadError(f"{url}: {answer}; correct the address in the YAML of the data set, or add a source")


def _check_type(response: requests.Response, beginning: bytes, url: str) -> None:
    """Refuse a page that says what is wrong, or asks for a login, under the status of success."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml") or PAGE.match(beginning):
        raise DownloadError(
            f"{url}: a web page comes in place of the file; open the address in a browser to see what it says"
            " (a login, a notice of maintenance, a proxy)"
        )


def _validators(response: requests.Response) -> dict[str, str | None]:
    etag = response.headers.get("ETag")
    # A weak one does not promise equal bytes.
    strong = etag if etag and not etag.startswith("W/") else None
    return {"etag": strong, "modified": response.headers.get("Last-Modified")}


def _check_range(response: requests.Response, start: int, part: Part) -> None:
    """See that the rest is the rest, and of the same version: not every server minds If-Range."""
    if not start:
        return
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    before, now = part.version(), _validators(response)
    changed = [key for key, value in now.items() if value and before.get(key) and value != before[key]]
    if found and found[2] != "*" and before.get("total") not in (None, int(found[2])):
        changed.append("size")
    if not found or int(found[1]) != start or changed:
        part.discard()
        raise _PassingError("the file has changed on the server, or the rest is not the rest; starting anew")


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _total(response: requests.Response, start: int, known: Mapping[str, Any], url: str) -> int | None:
    """Return the size that the whole file will have; without one, a file cut short would pass for whole."""
    length = _length(response)
    total = None if length is None else start + length
    if total is not None and known.get("size", total) != total:
        raise DownloadError(
            f"{url}: the server offers {total:,} bytes, expected {known['size']:,}; the source has changed the file:"
            f" correct {known.get('where', 'the YAML of the data set')} if the change is meant"
        )
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    if total is None and not chunked and not {"size", "md5", "sha256"} & set(known):
        raise DownloadError(
            f"{url}: the server does not say how long the file is; add its size or sha256 to the YAML of the data set"
        )
    return known.get("size", total)


def _blocks(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """Yield the body as it arrives."""
    since, n_bytes = time.monotonic(), 0
    try:
        # read1 gives what is there; a full read would wait for a connection that trickles.
        while block := response.raw.read1(CHUNK, decode_content=False):
            yield block
            n_bytes += len(block)
            seconds = time.monotonic() - since
            if seconds > patience.read:
                if n_bytes < SLOWEST * seconds:
                    raise _PassingError(f"only {n_bytes:,} bytes in {seconds:.0f} s")
                since, n_bytes = time.monotonic(), 0
    except (urllib3.exceptions.HTTPError, requests.RequestException) as error:
        raise _PassingError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the innermost of nested messages: `Connection refused`, not a page about connection pools."""
    if isinstance(error, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return "the connection has stalled"
    if isinstance(error, requests.ConnectTimeout):
        return "the server does not answer"
    text = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split()))
    if "IncompleteRead" in text:
        return "the connection broke off"
    text = text.rpartition(": ")[2].strip("()'\" .")
    return text + ")" * (text.count("(") - text.count(")")) or type(error).__name__


# ---- progress ------------------------------------------------------------------------------------


class _Lines:
    """A stream for tqdm that makes lines of what overwrites itself in a terminal, so that a log can be read."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def _progress(name: str, start: int, total: int | None) -> tqdm:
    terminal = sys.stdout.isatty()
    return tqdm(
        desc=name,
        initial=start,
        total=total,
        unit="B",
        unit_scale=True,
        ascii=True,
        ncols=100 + len(name),
        mininterval=0.5 if terminal else 10,
        file=sys.stdout if terminal else _Lines(sys.stdout),
    )
