"""What a method's program is made of: `run_method`, and the `Task` that it gets.

Names of `clue.benchmark.methods.run` are imported when they are used: planning, where anndata may be missing, reads
other modules of this package.
"""

import importlib


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("clue.benchmark.methods.run"), name)
