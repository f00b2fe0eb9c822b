"""CLUE: one embedding for cells seen in any subset of several modalities.

`CLUE` is the model, which `Objective` and `Training` configure; `clue.matching` and `clue.metrics` match and score
embeddings; `clue.simulate` makes data with known factors; `clue.preprocess` prepares encoder inputs.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["CLUE", "Objective", "Training", "matching", "metrics", "preprocess", "simulate"]

_HOMES = {"CLUE": "clue.model", "Objective": "clue.network", "Training": "clue.train"}


def __getattr__(name: str):
    """Import torch and the like only when what needs them is used."""
    if name not in __all__:
        raise AttributeError(f"module 'clue' has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"clue.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
