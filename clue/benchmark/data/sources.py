"""Where the raw files of a data set come from: the sources in its YAML, and the one that was downloaded.

Planning uses this module in an environment that may hold Snakemake alone; `download` needs more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clue.benchmark.errors import BenchmarkError

MANIFEST = "source.json"
"""The manifest that a download writes beside the raw files: which source was used, and the files' checksums."""


class DownloadError(BenchmarkError):
    """A raw file cannot be downloaded, or is not the one that the data set names."""


def sources(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the sources of a data set, in the order in which they are tried, each with a name."""
    return [{"name": source["kind"], **source} for source in spec.get("sources") or [spec["source"]]]


def has_files(spec: Mapping[str, Any]) -> bool:
    """Return whether a data set has raw files; a simulated one has none."""
    return any(source["kind"] != "simulated" for source in sources(spec))


def as_downloaded(spec: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return a data set as it was downloaded: with the one source that was used.

    Parameters
    ----------
    spec
        The checked ``config/datasets/<name>.yaml``.
    folder
        The folder of its raw files.

    Returns
    -------
    dict
        `spec` with the ``source``, ``prepare`` and ``expect`` of that source, and ``files``, which maps file names to
        SHA-256 digests in the order of the YAML.

    Raises
    ------
    DownloadError
        If the manifest is missing or names a source that the YAML no longer has, or if a file is missing or has a
        different size.
    """
    path = Path(folder) / MANIFEST
    common = {key: value for key, value in spec.items() if key != "sources"}
    if not has_files(spec):
        return common | {"source": sources(spec)[0], "files": {}}
    manifest = _read_manifest(path)
    found = [source for source in sources(spec) if source["name"] == manifest["source"]]
    if not found:
        raise DownloadError(
            f"{path}: names a source {manifest['source']!r} that the YAML does not have; delete it and run again"
        )
    for entry in manifest["files"]:
        file = path.with_name(entry["file"])
        if not file.is_file() or file.stat().st_size != entry["size"]:
            wrong = "has changed in size since it was downloaded" if file.is_file() else "no such file"
            raise DownloadError(f"{file}: {wrong}; delete {path} and run again")
    own = {key: found[0][key] for key in ("prepare", "expect") if key in found[0]}
    files = {entry["file"]: entry["sha256"] for entry in manifest["files"]}
    return common | own | {"source": found[0], "files": files}


def describe_source(spec: Mapping[str, Any]) -> str:
    """Return a short text that says where a data set with one source comes from."""
    source = spec["source"]
    match source["kind"]:
        case "http":
            return source["base"]
        case "pypi":
            return f"{source['package']}=={source['version']} (Python package index)"
        case "files":
            return f"local files: {', '.join(source['files'])}"
        case kind:
            return kind


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        _ = manifest["source"], [(entry["file"], entry["size"], entry["sha256"]) for entry in manifest["files"]]
    except FileNotFoundError as error:
        raise DownloadError(f"{path}: no such file; download the data set first (make download)") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{path}: cannot be read ({error!r}); delete it and run again") from error
    return manifest
