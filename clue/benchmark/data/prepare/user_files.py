"""A user's own data with raw counts: one ``.h5mu`` file, or one ``.h5ad`` file per modality.

Cells are paired by name. Cells that lack a modality are dropped or only used for training, since scoring needs pairs.
"""

import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.contracts import VAR_COLUMNS
from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

ONE_BATCH = "all"
TOLERATED_LOSS = 0.05
"""Share of a modality's cells that may lack another modality even if the YAML does not allow it."""
DIFFERENCES: dict[str, Callable[[str], str]] = {
    "upper and lower case": str.casefold,
    "their punctuation (- . _ :)": lambda name: re.sub(r"[-._:#]", "-", name),
    "their ending (such as -1)": lambda name: re.sub(r"[-._:#][^-._:#]*$", "", name),
    "their beginning (such as sample_)": lambda name: re.sub(r"^[^-._:#]*[-._:#]", "", name),
}
"""Common differences between the names of one cell in two files, each with a function that removes it."""


def prepare_own(spec: Spec, folder: Path) -> Modalities:
    """Return a user's modalities with the columns that the YAML names. Without a batch column there is one batch."""
    settings = spec["prepare"]
    layers = settings.get("layer")
    layers = layers if isinstance(layers, dict) else dict.fromkeys(spec["modalities"], layers)
    if "file" in settings:
        path = folder / settings["file"]
        read = _read_h5mu(path, spec["modalities"], layers)
        paths = dict.fromkeys(read, path)
    else:
        paths = {modality: folder / file for modality, file in settings["files"].items()}
        read = {modality: raw_files.read_h5ad(path, layers.get(modality)) for modality, path in paths.items()}
    read, lost = _paired(read, paths, settings.get("keep_unpaired", False), "n_cells" in spec.get("expect", {}))
    columns = {column: settings[column] for column in ("batch", "cell_type", "donor") if column in settings}
    obs = pd.DataFrame(index=pd.Index(np.concatenate([adata.obs_names for adata in read.values()])).unique())
    obs["batch"] = ONE_BATCH
    for ours, theirs in columns.items():
        obs[ours] = _column(read, theirs, f"prepare.{ours}", paths).reindex(obs.index).to_numpy()
    for column in settings.get("columns", ()):
        if column not in (*obs, "donor", "cell_type"):
            obs[column] = _column(read, column, "a split names it", paths).reindex(obs.index).to_numpy()
    modalities = {}
    for modality, adata in read.items():
        counts = raw_files.counts_of(adata.X, f"{paths[modality]} [{modality}]")
        var = adata.var.filter(VAR_COLUMNS)
        modalities[modality] = ad.AnnData(counts, obs=obs.loc[adata.obs_names], var=var, uns={"dropped": lost})
    return modalities


def _read_h5mu(path: Path, wanted: list[str], layers: dict[str, str | None]) -> Modalities:
    """Return the wanted modalities. Columns of the MuData's own ``obs`` are added to theirs."""
    with raw_files.opened(path) as file:
        if "mod" not in file:
            raise PrepareError(f"{path}: has no modalities; is it an .h5mu file? prepare.files takes .h5ad files")
        if absent := [name for name in wanted if name not in file["mod"]]:
            known = ", ".join(file["mod"])
            raise PrepareError(
                f"{path}: has no modality {', '.join(absent)} (it has {known}); rename it or correct the YAML"
            )
        modalities = {name: raw_files.elements(file["mod"][name], path, layers.get(name)) for name in wanted}
        shared = raw_files.read_table(file, "obs")
    raw_files.check_unique(shared.index, "cell name", path)
    for adata in modalities.values():
        for column in shared.columns.difference(adata.obs.columns):
            adata.obs[column] = shared[column].reindex(adata.obs_names).to_numpy()
    return modalities


def _column(read: Modalities, column: str, key: str, paths: dict[str, Path]) -> pd.Series:
    """Return a column of ``obs``, joined over all modalities that have it. They must agree."""
    found = {modality: adata.obs[column] for modality, adata in read.items() if column in adata.obs}
    if not found:
        modality, adata = next(iter(read.items()))
        return raw_files.column_of(adata.obs, column, f"obs ({key})", paths[modality])
    for (first, values), (modality, other) in itertools.combinations(found.items(), 2):
        shared = values.index.intersection(other.index, sort=False)
        differ = _as_text(values[shared]) != _as_text(other[shared])
        if differ.any():
            cell = shared[differ][0]
            raise PrepareError(
                f"{paths[modality]}: {key}: obs[{column!r}] of cell {cell!r} is {other[cell]!r} in {modality}, but"
                f" {values[cell]!r} in {first}; make them equal, or give them different names"
            )
    values, *others = found.values()
    for other in others:
        if len(more := other.index.difference(values.index, sort=False)):
            values = pd.concat([values, other[more]])
    return values


def _as_text(values: pd.Series) -> np.ndarray:
    """Return values as text. One table may hold 1.0 or NA where another holds 1 or NaN."""
    text = values.astype(object).where(values.notna(), np.nan)
    return text.map(lambda value: str(value).removesuffix(".0")).to_numpy()


# ---- pairs of cells ------------------------------------------------------------------------------


def _paired(
    modalities: Modalities, where: Mapping[str, Path], keep_unpaired: bool, declared: bool
) -> tuple[Modalities, str]:
    """Return the cells that every modality has, in the order of the first, and a text that says which are dropped.

    With `keep_unpaired`, the other cells follow them and none is dropped. Without it, losing more than `TOLERATED_LOSS`
    of a modality's cells is an error, since names that differ by a suffix also cause such a loss. It is no error if the
    loss is `declared`, that is, if the YAML says how many cells to expect.
    """
    names = {modality: adata.obs_names for modality, adata in modalities.items()}
    for modality, cells in names.items():
        raw_files.check_unique(cells, f"cell name of {modality}", where[modality])
    first = next(iter(names.values()))
    shared = first[np.logical_and.reduce([first.isin(cells) for cells in names.values()])]
    if not len(shared) and any(len(a.intersection(b)) for a, b in itertools.combinations(names.values(), 2)):
        raise PrepareError(
            f"{next(iter(where.values()))}: no cell is seen in all of {', '.join(names)}, as test cells must be; "
            "name modalities that share cells"
        )
    lost = []
    for modality, cells in names.items():
        n_lost = len(cells) - len(shared)
        if n_lost > (len(cells) - 1 if declared or keep_unpaired else TOLERATED_LOSS * len(cells)):
            raise PrepareError(f"{where[modality]}: {_why_lost(modality, names, shared)}")
        if n_lost:
            fate = "train, and are never test cells" if keep_unpaired else "are dropped"
            lost.append(f"{modality}: {n_lost} of {len(cells)} cells lack another modality and {fate}")
            print(lost[-1])
    if not keep_unpaired:
        return {modality: adata[shared].copy() for modality, adata in modalities.items()}, "; ".join(lost)
    order = {modality: shared.append(cells.difference(shared, sort=False)) for modality, cells in names.items()}
    return {modality: adata[order[modality]].copy() for modality, adata in modalities.items()}, ""


def _why_lost(modality: str, names: Mapping[str, pd.Index], shared: pd.Index) -> str:
    """Say how many cells of a modality match no other, with an example from each side and the likely reason."""
    alone = {name: cells.difference(shared, sort=False) for name, cells in names.items()}
    other = max((name for name in names if name != modality), key=lambda name: len(alone[name]))
    mine, theirs = alone[modality], alone[other]
    enough = max(1, min(len(mine), len(theirs)) // 2)
    reasons = [
        f"names differ in {what}"
        for what, plain in DIFFERENCES.items()
        if len(_with_plain(mine, names[modality], plain) & _with_plain(theirs, names[other], plain)) >= enough
    ]
    example = theirs[0] if len(theirs) else names[other][0]
    keep = "keep them for training with prepare: {keep_unpaired: true}"
    allowed = f", drop them with expect: {{n_cells: {len(shared)}}}, or {keep}" if len(shared) else ""
    return (
        f"{len(mine)} of {len(names[modality])} cells of {modality} are not in {other} ({modality} {mine[0]!r}, {other}"
        f" {example!r}); {[*reasons, 'cells are paired by name'][0]}: make names equal{allowed}"
    )


def _with_plain(cells: pd.Index, among: pd.Index, plain: Callable[[str], str]) -> set[str]:
    """Return the names of cells, and also their plain names where no other cell gets the same plain name.

    Without their beginnings, AAAC-1 and CCCT-1 are both 1, which would explain any loss.
    """
    own = among.map(plain).drop_duplicates(keep=False)
    return {*cells, *cells.map(plain).intersection(own)}
