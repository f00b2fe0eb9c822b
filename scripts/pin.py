"""Record the checksums of downloaded files in the project, so that every later download must match; commit them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clue.benchmark.data.download import PINNED, pin
from clue.benchmark.errors import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, default="data/raw", help="the folder of all raw files")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    arguments = parser.parse_args(argv)
    new = pin(arguments.raw, arguments.project)
    print(*(f"{PINNED}: {name} is new; commit it" for name in new), sep="\n")
    print(f"{PINNED}: {len(new)} new checksums")


if __name__ == "__main__":
    run_program(main)
