# %% [markdown]
# # Add your method to the benchmark
#
# **You have** a method that places cells of two modalities in one space. **You get** its row in the benchmark's tables
# and figures, beside methods that saw the same cells. **You learn** what a method is given, what it must return, and
# how its scores are computed. You need a checkout of the project and, once, `make install`; run this in the project
# folder.
#
# The example is partial least squares (PLS). It finds pairs of directions, one in each modality, whose scores have the
# largest covariance over paired cells. CCA, which the benchmark has, maximises correlation instead. Which one is better
# at finding the same cell again?
#
# ## Two files
#
# The first holds one function. It gets training cells and test cells, and returns an array for each modality.

# %%
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

program = '''"""Partial least squares between log-normalised counts of two modalities."""

import anndata as ad
import numpy as np
from scipy.sparse.linalg import svds

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import paired_cells


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Find the directions by paired training cells; project each modality's test cells."""
    paired = {name: log_normalised(cells) for name, cells in paired_cells(task.train).items()}
    mean = {name: values.mean(axis=0) for name, values in paired.items()}
    x, y = (values - mean[name] for name, values in paired.items())
    u, _, vt = svds(x.T @ y, k=params["n_components"], random_state=seed)
    directions = dict(zip(paired, (u, vt.T)))
    return {name: (log_normalised(cells) - mean[name]) @ directions[name] for name, cells in task.test.items()}


def log_normalised(cells: ad.AnnData) -> np.ndarray:
    """Return log(1 + counts per 10,000), shape (cells, features)."""
    counts = cells.X.toarray()
    return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


if __name__ == "__main__":
    run_method(embed)
'''
settings = """label: PLS
citation: Wold, 1975
script: pls.py
settings: set by hand
modalities: [[rna, atac], [rna, adt]]
params: {transductive: false, n_components: 20}
budgets: {test: {n_components: 5}}
variants: {more: {n_components: 100}}
resources: {mem_gb: 8, runtime_min: 30}
"""
written = Path("scripts/methods/pls.py"), Path("config/methods/pls.yaml")
for path, text in zip(written, (program, settings), strict=True):
    path.write_text(text)

# %% [markdown]
# `task.train` is a MuData of raw counts in which cells with the same name are one cell; `paired_cells` takes those that
# are seen in both modalities. `task.test` has the test cells of each modality, shuffled and renamed, so that no method
# can know which two belong together. The result needs one row per test cell, in the given order, and the same width for
# both modalities.
#
# The second file tells the benchmark what it must know about the method. `variants` run in addition to the default and
# get their own rows. The next step uses the small `test` budget.
#
# ## Check it
#
# `make check-method` runs the method on tiny tasks that have the difficulties of real data: cells seen in only one
# modality, several donors, a feature that is zero in all training cells.


# %%
def shell(command: str, lines: int) -> None:
    """Run a command and print the end of its output."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    said = done.stdout.replace(f"{Path.cwd()}/", "").splitlines()
    print(f"$ {command}", *said[-lines:], sep="\n")
    assert done.returncode == 0, done.stdout + done.stderr


shell("make check-method NAME=pls", 1)

# %% [markdown]
# ## Run it beside others
#
# A configuration selects data sets, methods and seeds. `pbmc_multiome` is real: 490 cells of a Multiome. `simulated`
# has 1,500 cells with known factors.

# %%
Path("config/pls.yaml").write_text("""run: pls
datasets: [pbmc_multiome/random30, simulated/random20]
methods: [pls/default, pls/more, cca/default, random]
seeds: [0, 1, 2]
budget: quick
""")
shell("make run CONFIG=config/pls.yaml", 12)

# %% [markdown]
# ## Read its rows
#
# Scores, run times and memory are in `results/pls/tables/summary.tsv`. `results/pls/report.html` shows the same, with
# all figures.

# %%
table = pd.read_csv("results/pls/tables/summary.tsv", sep="\t")
columns = ["Data set", "Method", "Match score ↑", "FOSCTTM ↓"]
print(table[columns].to_string(index=False))

picture = plt.imread("results/pls/figures/comparison.png")
height, width, _ = picture.shape
figure = plt.figure(
    "Match score and FOSCTTM of the methods of this run",
    figsize=(9, 9 * height / width),
)
axis = figure.add_axes((0, 0, 1, 1))
axis.imshow(picture)
axis.axis("off")

# %% [markdown]
# The **match score** is the weight that a match gives to the true partner, averaged over test cells. **FOSCTTM** is the
# fraction of cells that are closer than the true partner. The same code computes both from the embedding for every
# method. PLS is far better than chance, and CCA is better than PLS: directions of large covariance are those with many
# counts, and features that are abundant in both modalities are not the ones that tell cells apart. More directions do
# not help PLS. Make such a choice on held-out training cells, not on test cells, with
# `clue.benchmark.methods.validation.choose`.
#
# ## Keep it, or take it away

# %%
for path in (*written, Path("config/pls.yaml")):
    path.unlink()

# %% [markdown]
# ## Where to go on
#
# * [Extend](../extend.md): all keys of the YAML, a method with its own rule, data sets, metrics.
# * [Cluster](../cluster.md): the same on many nodes, with GPUs.
# * [Protocol](../benchmark.md): which cells are test cells, and how scores are computed.
