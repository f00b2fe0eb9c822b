"""No raw files: paired counts with known factors, drawn by `clue.simulate`."""

from pathlib import Path

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec
from clue.simulate import simulate


def prepare_simulated(spec: Spec, folder: Path) -> Modalities:
    """Return simulated cells."""
    try:
        return dict(simulate(**spec["prepare"]["arguments"]).mod)
    except ValueError as error:
        raise PrepareError(f"prepare.arguments: {error}") from error
