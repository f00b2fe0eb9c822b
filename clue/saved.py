"""Files of models and checkpoints: written completely or not at all, and read only as data."""

import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write with `torch.save` under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_whole(path: str | Path) -> bool:
    """Return whether a file is an archive as `torch.save` writes it, and its contents match their checksums."""
    with open(path, "rb") as file:
        try:
            return zipfile.ZipFile(file).testzip() is None
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError, EOFError, OSError):
            return False  # the error that zipfile raises depends on where the damage is


def load(path: str | Path, device: torch.device | str) -> Any:
    """Return what `torch.load` reads, as data only; None if the file is damaged or holds something else."""
    try:
        return torch.load(path, map_location=device, weights_only=True) if is_whole(path) else None
    except (pickle.UnpicklingError, RuntimeError):
        return None


def without_arrays(value: Any) -> Any:
    """Return `value` with arrays as tensors, or as lists if they hold text: `torch.load` reads these as data only."""
    if isinstance(value, Mapping):
        return {key: without_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_arrays(part) for part in value)
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "OU" else torch.from_numpy(value)
    return value.item() if isinstance(value, np.generic) else value


def with_arrays(value: Any) -> Any:
    """Return `value` with tensors as arrays."""
    if isinstance(value, Mapping):
        return {key: with_arrays(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_arrays(part) for part in value]
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value
