"""Fit the encoder inputs that methods share, on the training cells of a split."""

from pathlib import Path
from typing import Any

from clue.benchmark.contracts import read_train
from clue.benchmark.methods.features import fit_for_file, write_features
from clue.benchmark.program import run_program


def main(train: Path, cells: str, settings: dict[str, Any], features: Path) -> None:
    """Run the program.

    Parameters
    ----------
    train
        Training cells (train.h5mu).
    cells
        Which of them to fit on: all, paired, or fold-SEED.
    settings
        n_components and n_features, a JSON map.
    features
        The file to write.
    """
    fitted = fit_for_file(read_train(train), cells, settings)
    for k, prepared in fitted.preprocessors.items():
        print(f"{k}: {prepared.width} components of {len(prepared.selected)} features")
    if fitted.error:
        print(f"no features, so methods that need them will fail: {fitted.error}")
    write_features(fitted, features)


if __name__ == "__main__":
    run_program(main)
