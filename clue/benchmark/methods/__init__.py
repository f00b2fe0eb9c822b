"""Tools for a method's program: `run_method`, and the `Task` that the method receives.

Names of `clue.benchmark.methods.run` are imported only when they are used, because planning reads other modules of this
package where anndata may be missing.
"""

import importlib


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(importlib.import_module("clue.benchmark.methods.run"), name)
