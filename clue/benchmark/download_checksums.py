"""The checksums of downloaded files that a data set's YAML does not know: ``config/datasets/checksums.tsv``.

It works like ``go.sum``: the first download of a file adds its row, and every later one, on any machine that has the
row, must match. A run thus writes a tracked file, and means to: a new row shows in ``git diff`` and is committed, or
not, by a person. A row is never changed and never removed here.
"""

import csv
import io
from pathlib import Path
from typing import Any

from filelock import FileLock

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic

TABLE = Path("config", "datasets", "checksums.tsv")
COLUMNS = ["dataset", "file", "size", "sha256", "source"]


def read_checksums(root: str | Path, dataset: str) -> dict[str, dict[str, Any]]:
    """Return ``{file: {"size", "sha256", "where"}}`` of a data set; `root` is the project folder."""
    where = f"its row in {TABLE}"
    return {
        row["file"]: {"size": int(row["size"]), "sha256": row["sha256"], "where": where}
        for row in _read(Path(root))
        if row["dataset"] == dataset
    }


def record_checksum(root: str | Path, dataset: str, file: str, size: int, sha256: str, source: str) -> None:
    """Add the row of a file, unless it has one."""
    root = Path(root)
    # Downloads of several data sets end at the same time.
    with FileLock(root / TABLE.with_name(".checksums.lock")):
        rows = _read(root)
        if (dataset, file) in {(row["dataset"], row["file"]) for row in rows}:
            return
        rows.append({"dataset": dataset, "file": file, "size": str(size), "sha256": sha256, "source": source})
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(rows, key=lambda row: (row["dataset"], row["file"])))
        with atomic(root / TABLE) as temporary:
            temporary.write_text(text.getvalue())
    print(f"{TABLE}: new row for {file}, sha256 {sha256}; commit it", flush=True)


def _read(root: Path) -> list[dict[str, str]]:
    path = root / TABLE
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for number, row in enumerate(rows, start=2):
        right = list(row) == COLUMNS and None not in row.values()
        if not right or not row["size"].isdigit() or len(row["sha256"]) != 64:
            raise BenchmarkError(
                f"{TABLE}: line {number}: must hold {', '.join(COLUMNS)}; correct it or remove the line"
            )
    return rows
