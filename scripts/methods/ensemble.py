"""An ensemble of other methods' embeddings: scaled to unit length, weighted, set side by side.

Cosine similarities in the result are means of those in the members, weighted alike; a member's own metric is not used.
"""

import numpy as np

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.matching import l2_normalise


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Combine the members' embeddings of each modality; nothing is fitted."""
    weights = params["weights"]
    if set(weights) != set(task.members):
        raise BenchmarkError(f"params.weights names {sorted(weights)}, members {sorted(task.members)}; name the same")
    return {
        modality: np.hstack(
            [np.sqrt(weight) * l2_normalise(task.members[name][modality]) for name, weight in weights.items()]
        )
        for modality in task.test
    }


if __name__ == "__main__":
    run_method(embed)
