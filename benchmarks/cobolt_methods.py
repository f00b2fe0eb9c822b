"""Compare our Cobolt with the authors' on one task: match score and FOSCTTM over seeds.

The authors' code is a Git repository (github.com/boyinggong/cobolt). With a checkout of the commit in envs/cobolt.yaml:

    PYTHONPATH=<checkout> python benchmarks/cobolt_methods.py --task results/quick/pbmc_multiome/random30 --seeds 0 1 2
"""

import runpy
import tempfile
import time
from pathlib import Path

import torch

from clue.benchmark.config import Benchmark
from clue.benchmark.contracts import MODALITIES, read_solution, read_test, read_train
from clue.benchmark.methods import Task
from clue.benchmark.methods.validation import quality
from clue.benchmark.program import run_program
from clue.benchmark.scores.stats import summarise

ROOT = Path(__file__).parents[1]


def main(
    task: Path, seeds: list[int], methods: tuple[str, ...] = ("cobolt_native", "cobolt"), budget: str = ""
) -> None:
    """Run the program.

    Parameters
    ----------
    task
        Folder of train.h5mu, test files and solution.h5ad.
    seeds
        Seeds to run.
    methods
        Methods to run.
    budget
        A budget in the methods' YAML.
    """
    torch.set_num_threads(1)
    print("method\tseed\tmatch_score\tfoscttm\tmetric\tcpu_seconds\tlearning_rate", flush=True)
    for method in methods:
        rows = [run(task, method, seed, budget) for seed in seeds]
        for name, values in zip(("match_score", "foscttm"), zip(*rows, strict=True), strict=True):
            summary = summarise(values)
            spread = f" ± {summary.sd:.4f}" if summary.n > 1 else ""
            print(f"{method}: {name} {summary.mean:.4f}{spread}, {summary.n} seeds", flush=True)


def run(folder: Path, method: str, seed: int, budget: str) -> tuple[float, float]:
    """Train and score once, and print a line."""
    paths = [folder / f"test_{name}.h5ad" for name in MODALITIES]
    tests = {path.stem.removeprefix("test_"): read_test(path) for path in paths if path.exists()}
    config = {"run": "x", "datasets": ["simulated"], "methods": [method], "seeds": [seed], "budget": budget}
    benchmark = Benchmark(config, ROOT)
    embed = runpy.run_path(str(ROOT / "scripts/methods" / benchmark.methods[method]["script"]))["embed"]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as checkpoints:
        task = Task(read_train(folder / "train.h5mu"), tests, "cpu", 1, Path(checkpoints))
        embedded = embed(task, benchmark.params(method, "default", list(tests)), seed)
    seconds = time.process_time() - start
    pairs = read_solution(folder / "solution.h5ad").obs
    x, y = (embedded[name][cells.obs_names.get_indexer(pairs[name])] for name, cells in tests.items())
    match, closer = quality(x, y, pairs["batch"].astype(str).to_numpy(), task.metric)
    words = [method, seed, f"{match:.4f}", f"{closer:.4f}", task.metric, f"{seconds:.1f}", task.info["learning_rate"]]
    print(*words, sep="\t", flush=True)
    return match, closer


if __name__ == "__main__":
    run_program(main)
