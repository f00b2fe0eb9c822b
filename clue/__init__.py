"""CLUE: one embedding for cells seen in any subset of several modalities.

`CLUE` is the model; `clue.matching` and `clue.metrics` match and score embeddings;
`clue.simulate` makes data with known factors; `clue.preprocess` prepares encoder inputs.
"""

import importlib

__version__ = "0.1.0"
__all__ = ["CLUE", "simulate"]

_LAZY = {"CLUE": "clue.model", "simulate": "clue.simulate"}


def __getattr__(name: str):
    """Import torch and the like only when what needs them is used."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'clue' has no attribute {name!r}")
