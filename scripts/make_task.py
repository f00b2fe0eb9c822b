"""Split one data set: training cells, censored test cells of each modality, and the sealed solution."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.contracts import read_dataset, write_solution, write_test, write_train
from clue.benchmark.data.task import TaskFiles, make_task
from clue.benchmark.errors import BenchmarkError, run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset-file", type=Path, required=True, help="the prepared data set (<dataset>.h5mu)")
    parser.add_argument("--dataset", required=True, help="a name of config/datasets")
    parser.add_argument("--split", required=True, help="a name of the data set's splits")
    parser.add_argument("--max-cells", type=int, help="keep so many cells at most")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    arguments = parser.parse_args(argv)
    spec = load("datasets", arguments.dataset, arguments.project)
    splits = spec["splits"]
    if arguments.split not in splits:
        known = ", ".join(splits)
        raise BenchmarkError(f"config/datasets/{arguments.dataset}.yaml: no split {arguments.split!r}; splits: {known}")
    data = read_dataset(arguments.dataset_file)
    if list(data.mod) != spec["modalities"]:
        raise BenchmarkError(
            f"{arguments.dataset_file}: holds {list(data.mod)}, but config/datasets/{arguments.dataset}.yaml says"
            f" modalities: {spec['modalities']}; correct the YAML or delete the file and run again"
        )
    task = make_task(data, arguments.dataset, arguments.split, splits[arguments.split], arguments.max_cells)
    write(task, arguments.folder)
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
