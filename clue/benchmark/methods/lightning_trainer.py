"""Settings for methods that Lightning trains."""

from collections.abc import Sequence
from typing import Any

N_REPORTS = 50
"""How many lines of progress a full training prints."""


def trainer_arguments(device: str, max_epochs: int, losses: Sequence[str]) -> dict[str, Any]:
    """Return arguments of Lightning's trainer: for one device, with lines of progress instead of a bar.

    A bar is unreadable in a log.

    Parameters
    ----------
    device
        As in `Task`.
    max_epochs
        Largest number of epochs.
    losses
        Names of the metrics to print; those that an epoch does not have are left out.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    every = max(1, max_epochs // N_REPORTS)

    def report(trainer, _) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % every == 0 or epoch == 1:
            found = {name: float(trainer.callback_metrics[name]) for name in losses if name in trainer.callback_metrics}
            words = ", ".join(f"{name} {loss:.2f}" for name, loss in found.items())
            print(f"epoch {epoch} of at most {max_epochs}: {words}", flush=True)

    return {
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "callbacks": [LambdaCallback(on_train_epoch_end=report)],
    }
