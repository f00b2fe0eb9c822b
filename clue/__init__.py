"""CLUE: one embedding for cells seen in any subset of several modalities.

`CLUE` is the model; `Objective` and `Training` configure it. `clue.matching` and `clue.metrics` match and score
embeddings, `clue.correction` corrects those of new cells before, `clue.simulate` makes data with known factors, and
`clue.preprocess` prepares encoder inputs.
"""

import importlib

__version__ = "0.2.0"
__all__ = ["CLUE", "Objective", "Training", "correction", "matching", "metrics", "preprocess", "simulate"]

_HOMES = {"CLUE": "clue.model", "Objective": "clue.network", "Training": "clue.train"}


def __getattr__(name: str):
    """Import a module on first use, so that `import clue` loads neither torch nor other large packages."""
    if name not in __all__:
        raise AttributeError(f"module 'clue' has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"clue.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
