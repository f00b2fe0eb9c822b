# %% [markdown]
# # A mosaic of three modalities
#
# **You have** several data sets, each measured in different modalities: here a Multiome (RNA and chromatin
# accessibility) and a CITE-seq (RNA and surface proteins). No cell was seen in accessibility *and* proteins. **You
# get** one embedding for all of them, matches between cells of the two modalities that were never measured together,
# and proteins of cells of which only the accessibility is known. **You learn** what a mosaic can do and what it cannot.
#
# The cells are simulated, because only then is the truth known: 3,600 cells of ten types in three batches. Ten factors
# drive all modalities; three more drive each modality alone.

# %%
import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc

import clue
from clue.simulate import simulate

features = {"rna": 1000, "atac": 3000, "adt": 60}
cells = simulate(3600, features, n_types=10, n_batches=3, type_separation=2, seed=1).mod
batch = cells["rna"].obs["batch"]

measured = {"batch1": ["rna", "atac"], "batch2": ["rna", "adt"]}
train = {
    name: adata[[name in measured.get(b, []) for b in batch]].copy()
    for name, adata in cells.items()
}
test = {name: adata[batch == "batch3"].copy() for name, adata in cells.items()}
table = pd.DataFrame({k: batch[v.obs_names].value_counts() for k, v in train.items()})
print(table.loc[list(measured)].astype(int))
print("to judge by:", test["rna"].n_obs, "cells of batch3, each seen in all three")

# %% [markdown]
# A mosaic needs no special format: give the cells of each modality, and cells with the same name are one cell. A MuData
# with cells that lack modalities works as well.
#
# ## Training
#
# Accessibility is seen only in `batch1`, and proteins only in `batch2`. So the batch gives the modality away, and a
# discriminator that reads the batch has nothing to align. CLUE warns about this. With `shared_batches=False`, the
# discriminator does not read the batch. This is right here, because both batches hold the same kinds of cells. If they
# did not, it would pull different cells together.

# %%
model = clue.CLUE(train, batch_key="batch", shared_batches=False)
model.fit(max_steps=1000, progress=False)
print(model)

# %% [markdown]
# ## One space for three modalities
#
# Each cell of `batch3` is treated as three cells, each seen in one modality.

# %%
z = {name: model.embed(adata) for name, adata in test.items()}
obs = test["rna"].obs
one_space = ad.AnnData(
    np.vstack(list(z.values())),
    obs=pd.DataFrame(
        {
            "modality": np.repeat(list(z), len(obs)),
            "cell type": np.tile(obs["cell_type"], len(z)),
        }
    ),
)
sc.pp.neighbors(one_space, use_rep="X", metric="cosine", random_state=0)
sc.tl.umap(one_space, random_state=0)

shuffled = one_space[np.random.default_rng(0).permutation(one_space.n_obs)].copy()
figure, axes = plt.subplots(
    1,
    2,
    figsize=(9, 3.8),
    layout="constrained",
    num="UMAP of cells seen in one modality, by modality and by cell type",
)
for axis, color in zip(axes, ("modality", "cell type"), strict=True):
    sc.pl.umap(shuffled, color=color, ax=axis, show=False, frameon=False, size=8)

# %% [markdown]
# ## Matching what was never measured together
#
# The training data have no pair of accessibility and proteins. The read-out that `match` uses connects both to RNA, and
# through it to each other.

# %%
rows = []
for a, b in (("rna", "atac"), ("rna", "adt"), ("atac", "adt")):
    match = model.match(test[a], test[b])
    distances = clue.metrics.foscttm(model.align(test[a]), model.align(test[b]))
    rows.append(
        {
            "from": a,
            "to": b,
            "match score": clue.metrics.match_score(match, np.arange(len(obs))),
            "FOSCTTM": np.mean(distances),
        }
    )
print(pd.DataFrame(rows).round(3).to_string(index=False))
print(f"by chance: match score {1 / len(obs):.4f}, FOSCTTM 0.5")

# %% [markdown]
# 60 proteins say less about a cell than 1,000 genes or 3,000 peaks, so the lines with proteins are the weaker ones. The
# last line is as good as the second: here the missing pairs cost almost nothing. This holds if RNA shows what the other
# two share. No mosaic can show what accessibility and proteins share *without* RNA.
#
# ## Proteins from accessibility

# %%
counts = test["adt"].to_df()
shares = counts.div(counts.sum(axis=1), axis=0)
figure, axis = plt.subplots(
    figsize=(5.4, 3),
    layout="constrained",
    num="How well proteins are predicted from each set of modalities",
)
sources = {
    "RNA": test["rna"],
    "accessibility": test["atac"],
    "both": {name: test[name] for name in ("rna", "atac")},
}
correlations = {}
for name, source in sources.items():
    predicted = model.predict(source, "adt").to_df()
    correlations[name] = predicted.corrwith(shares, method="spearman")
    print(f"{name:14}median Spearman correlation {correlations[name].median():.2f}")
axis.boxplot(list(correlations.values()), vert=False)
axis.set(
    yticks=[1, 2, 3], yticklabels=list(correlations), xlabel="Spearman correlation"
)

# %% [markdown]
# `model.predict` takes one modality, or several of the same cells. A correlation of 1 is out of reach: a protein's
# counts have their own noise, and three of the factors that drive proteins show in no other modality. Neither source
# knows those three, so two sources are hardly better than one.
#
# ## What only one modality shows
#
# z keeps those factors too, in the subspace of their modality. To see how much of them it keeps, fit a linear map from
# each subspace of a cell's fused embedding to the factors of its modality.

# %%
fused = model.embed(test)
half = np.arange(len(obs)) % 2 == 0
rows = {}
for k, name in enumerate(model.modalities):
    own = fused[:, k * 20 : (k + 1) * 20]
    x = np.column_stack([np.ones(len(own)), own])
    for kind in ("shared", "specific"):
        y = test[name].obsm[kind]
        fit = np.linalg.lstsq(x[half], y[half], rcond=None)[0]
        residual = ((y[~half] - x[~half] @ fit) ** 2).sum()
        total = ((y[~half] - y[~half].mean(0)) ** 2).sum()
        rows.setdefault(name, {})[f"{kind} factors"] = 1 - residual / total
print("R² on the other half of the cells")
print(pd.DataFrame(rows).T.round(2))

# %% [markdown]
# Each modality's own factors survive, but less well if few counts show them: there are only 60 proteins. Spaces that
# are made only for matching lose them.
#
# ## Where to go on
#
# * [Your own cells](own_data.md): from a file to an embedding, and how to judge it.
# * [Library](../library.md): what the two spaces mean, and which settings matter.
# * The benchmark makes a mosaic of any data set and scores methods on it: [protocol](../benchmark.md).
