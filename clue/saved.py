"""Files of models and checkpoints: written at once or not at all, and read as data alone."""

import os
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


def without_arrays(value: Any) -> Any:
    """Return `value` with arrays as tensors, or as lists if they hold text, which `torch.load` reads as data alone."""
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
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else value
