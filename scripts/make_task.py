"""Split one data set: training cells, censored test cells of each modality, and the sealed solution."""

from pathlib import Path

import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.contracts import read_dataset, write_solution, write_test, write_train
from clue.benchmark.data.task import TaskFiles, make_task
from clue.benchmark.program import run_program


def main(
    dataset_file: Path, dataset: str, split: str, folder: Path, max_cells: int | None = None, project: Path = Path()
) -> None:
    """Run the program.

    Parameters
    ----------
    dataset_file
        The prepared data set (<dataset>.h5mu).
    split
        A name of the data set's splits.
    folder
        Folder for the files.
    max_cells
        Keep at most this many cells.
    """
    settings = load("datasets", dataset, project)["splits"][split]
    task = make_task(read_dataset(dataset_file), dataset, split, settings, max_cells)
    write(task, folder)
    describe(task)


def write(task: TaskFiles, folder: Path) -> None:
    """Check and write all files of a task."""
    write_train(task.train, folder / "train.h5mu")
    for modality, adata in task.tests.items():
        write_test(adata, folder / f"test_{modality}.h5ad")
    write_solution(task.solution, folder / "solution.h5ad")


def describe(task: TaskFiles) -> None:
    """Print the number of cells by batch, and where the labels come from."""
    cells = {f"train {modality}": adata.obs["batch"] for modality, adata in task.train.mod.items()}
    cells["test"] = task.solution.obs["batch"]
    table = pd.DataFrame({name: batch.astype(str).value_counts() for name, batch in cells.items()})
    table = table.fillna(0).astype(int).sort_index()
    table.loc["all"] = table.sum()
    print(table.to_string())
    names = [set(adata.obs_names) for adata in task.train.mod.values()]
    print(f"training cells seen in all modalities: {len(set.intersection(*names))}")
    print(f"{task.solution.obs['cell_type'].nunique()} cell types among the test cells; {task.solution.uns['labels']}")


if __name__ == "__main__":
    run_program(main)
