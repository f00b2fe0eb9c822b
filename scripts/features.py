"""Fit the encoder inputs that methods share, on cells of a split."""

from pathlib import Path
from typing import Any

from clue.benchmark.contracts import read_test, read_train
from clue.benchmark.methods.features import fit_for_file, write_features
from clue.benchmark.program import run_program


def main(train: Path, tests: list[Path], cells: str, settings: dict[str, Any], features: Path) -> None:
    """Run the program.

    Parameters
    ----------
    train
        Training cells (train.h5mu).
    tests
        Test cells (test_<modality>.h5ad).
    cells
        Which to fit on: all training cells, with_test, paired, or fold-SEED.
    settings
        n_components and n_features, a JSON map.
    features
        The file to write.
    """
    test = {adata.uns["modality"]: adata for adata in map(read_test, tests)}
    fitted = fit_for_file(cells, read_train(train), test, settings)
    for k, prepared in fitted.preprocessors.items():
        print(f"{k}: {prepared.width} components of {len(prepared.selected)} features")
    if fitted.error:
        print(f"no features, so methods that need them will fail: {fitted.error}")
    write_features(fitted, features)


if __name__ == "__main__":
    run_program(main)
