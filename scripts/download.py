"""Download the raw files of one data set and verify them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clue.benchmark.config import load
from clue.benchmark.data.download import download
from clue.benchmark.errors import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a name of config/datasets")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go (data/raw/<dataset>)")
    parser.add_argument("--mirror", default="", help="an address that is tried first: <mirror>/<dataset>/<file>")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    arguments = parser.parse_args(argv)
    project = arguments.project
    spec = load("datasets", arguments.dataset, project)
    download(arguments.dataset, spec, arguments.folder, root=project, mirror=arguments.mirror)


if __name__ == "__main__":
    run_program(main)
