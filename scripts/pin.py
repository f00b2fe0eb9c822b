"""Record the checksums of downloaded files in the project, so that later downloads must match; commit them."""

from pathlib import Path

from clue.benchmark.data.download import PINNED, pin
from clue.benchmark.program import run_program


def main(raw: Path = Path("data/raw"), project: Path = Path()) -> None:
    """Run the program.

    Parameters
    ----------
    raw
        The folder of all raw files.
    """
    new = pin(raw, project)
    print(*(f"{PINNED}: {name} is new; commit it" for name in new), sep="\n")
    print(f"{PINNED}: {len(new)} new checksums")


if __name__ == "__main__":
    run_program(main)
