"""Split one data set: training cells, censored test cells of each modality, and the sealed solution."""

from pathlib import Path

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
    write_train(task.train, folder / "train.h5mu")
    for modality, adata in task.tests.items():
        write_test(adata, folder / f"test_{modality}.h5ad")
    write_solution(task.solution, folder / "solution.h5ad")
    describe(task)


def describe(task: TaskFiles) -> None:
    """Print the numbers of cells, and where the labels come from."""
    n_complete = len(set.intersection(*(set(adata.obs_names) for adata in task.train.mod.values())))
    print(f"{task.train.n_obs} training cells, {n_complete} of them seen in all modalities")
    n_types = task.solution.obs["cell_type"].nunique()
    print(f"{task.solution.n_obs} test cells of {n_types} cell types; {task.solution.uns['labels']}")


if __name__ == "__main__":
    run_program(main)
