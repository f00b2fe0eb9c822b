"""Download the raw files of one data set and verify them."""

from pathlib import Path

from clue.benchmark.config import load
from clue.benchmark.data.download import download
from clue.benchmark.program import run_program


def main(dataset: str, folder: Path, mirror: str = "", project: Path = Path()) -> None:
    """Run the program.

    Parameters
    ----------
    folder
        Folder for the files (data/raw/<dataset>).
    mirror
        An address that is tried first: <mirror>/<dataset>/<file>.
    """
    download(dataset, load("datasets", dataset, project), folder, root=project, mirror=mirror)


if __name__ == "__main__":
    run_program(main)
