"""Fit CHAMPOLLION on paired cells and transport between others: GIVEN.npz, RESULT.npz, settings as JSON.

`champollion-omics` is under the GPL, version 3. This program runs it, and no module imports this program.
"""

import json
import sys

import anndata as ad
import mudata as md
import numpy as np
from champollion import Champollion


def main(given: str, result: str, settings: str) -> None:
    """Read ``bridge_0``, ``bridge_1``, ``test_0``, ``test_1``; write ``A``, ``f``, ``g`` and how it converged."""
    with np.load(given) as arrays:
        cells = {name: ad.AnnData(arrays[name]) for name in arrays}
    model = Champollion(**json.loads(settings))
    model.fit(md.MuData({"first": cells["bridge_0"], "second": cells["bridge_1"]}), "first", "second")
    plan = model.transport({"first": cells["test_0"], "second": cells["test_1"]})
    errors = model.training_history_["train_err_1"]
    np.savez(
        result,
        A=model.A_.cpu().numpy(),
        f=plan.f.cpu().numpy(),
        g=plan.g.cpu().numpy(),
        iterations=min(len(errors) * model.log_every, model.max_iter),
        marginal_error=errors[-1],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
