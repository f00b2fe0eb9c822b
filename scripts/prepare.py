"""Prepare one data set: turn its raw files into one checked file of raw counts."""

from pathlib import Path

from clue.benchmark.config import load
from clue.benchmark.contracts import write_dataset
from clue.benchmark.data.prepare import prepare
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program


def main(dataset: str, raw: Path, output: Path, project: Path = Path()) -> None:
    """Run the program.

    Parameters
    ----------
    raw
        Folder of the raw files (data/raw/<dataset>).
    output
        The file to write (<dataset>.h5mu).
    """
    spec = load("datasets", dataset, project)
    try:
        mdata = prepare(dataset, spec, raw)
    except BenchmarkError as error:
        raise BenchmarkError(f"{error} (config/datasets/{dataset}.yaml)") from error
    write_dataset(mdata, output)
    widths = ", ".join(f"{adata.n_vars} {modality}" for modality, adata in mdata.mod.items())
    print(f"{output}: {mdata.n_obs} cells; features: {widths}")


if __name__ == "__main__":
    run_program(main)
