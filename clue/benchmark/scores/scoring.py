"""Score an embedding against the solution: two match matrices and a tidy table of metrics.

The same code for every method. Rows of the solution name the cells of a pair; batches and cell types
are the solution's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import ContractError, check_embedding_fits, metric_of, names_of_test_cells
from clue.benchmark.files import atomic
from clue.matching import BatchTooLarge, Metric, match_gaussian, match_ot, match_snn
from clue.metrics import (
    cell_type_match,
    count_closer,
    foscttm_within_batch,
    label_transfer_accuracy,
    true_weights,
)

IDENTITY_COLUMNS = ["run", "dataset", "split", "method", "variant", "seed"]
METRICS_COLUMNS = [*IDENTITY_COLUMNS, "transductive", "direction", "metric", "value", "status", "reason"]
CELL_COLUMNS = ["pair", "direction", "match_score", "foscttm"]
BOTH = "both"
"""The direction that is the mean of the two."""


@dataclass
class Side:
    """The test cells of one modality, in file order."""

    modality: str
    embedding: np.ndarray
    metric: Metric
    batch: np.ndarray
    cell_type: np.ndarray
    pair: np.ndarray
    """Row of the solution that each cell belongs to."""


@dataclass
class Scores:
    """Match matrices by direction (``rna2adt``, ``adt2rna``), the rows of ``metrics.tsv``, and scores per cell."""

    matches: dict[str, sp.csr_matrix]
    metrics: pd.DataFrame
    cells: pd.DataFrame
    """Match score and FOSCTTM of each pair, a row of the solution, in each direction: their means are the metrics."""


# ---- alignment -----------------------------------------------------------------------------------


def align(embedding: ad.AnnData, solution: ad.AnnData, where: str) -> tuple[Side, Side]:
    """Return both modalities of an embedding in file order, with what the solution knows of each cell.

    Raises
    ------
    ContractError
        If the rows are not the test cells of the solution, or batches disagree.
    """
    modalities = [str(name) for name in solution.uns["modalities"]]
    if len(modalities) != 2:
        raise ContractError(f"{where}: the solution pairs {modalities}; scoring takes two modalities")
    if embedding.n_vars == 0:
        raise ContractError(f"{where}: X has no columns")
    renamed = int((embedding.obs["cell"].astype(str) != embedding.obs_names).sum())
    if renamed:
        raise ContractError(f"{where}: obs['cell'] differs from obs_names in {renamed} rows; make them equal")
    tests = {name: pd.Index(names_of_test_cells(name, solution.n_obs)) for name in modalities}
    check_embedding_fits(embedding, tests, where)
    first, second = (_side(embedding, solution, name, tests[name], where) for name in modalities)
    return first, second


def _side(embedding: ad.AnnData, solution: ad.AnnData, modality: str, cells: pd.Index, where: str) -> Side:
    rows = (embedding.obs["modality"] == modality).to_numpy()
    pair = pd.Index(solution.obs[modality].astype(str)).get_indexer(cells)
    known = solution.obs.iloc[pair]
    batch = known["batch"].astype(str).to_numpy()
    differ = int((embedding.obs["batch"].astype(str).to_numpy()[rows] != batch).sum())
    if differ:
        raise ContractError(f"{where}: obs['batch'] of {differ} {modality} cells differs from the test file's")
    cell_type = known["cell_type"].astype(str).to_numpy()
    return Side(modality, np.asarray(embedding.X)[rows], metric_of(embedding), batch, cell_type, pair)


def _partners(source: Side, target: Side) -> np.ndarray:
    """Return for each cell of `source` the row of its partner in `target`."""
    row = np.empty(len(target.pair), dtype=np.int64)
    row[target.pair] = np.arange(len(target.pair))
    return row[source.pair]


# ---- metrics -------------------------------------------------------------------------------------


def score(embedding: ad.AnnData, solution: ad.AnnData, run: str = "", where: str = "embedding") -> Scores:
    """Match the two modalities and compute every metric.

    Parameters
    ----------
    embedding, solution
        Checked contents of ``embedding.h5ad`` and ``solution.h5ad``.
    run
        The name of the run, for the table.
    where
        The name of the embedding in error messages.
    """
    identity = identify(embedding, solution, run, where)
    first, second = align(embedding, solution, where)
    table = _Table(f"{first.modality}2{second.modality}", f"{second.modality}2{first.modality}")
    matches, hits = _score_matches(first, second, table)
    fractions = _score_distances(first, second, table)
    table.both_ways("label_transfer_accuracy", *_two_ways(_label_transfer, first, second))
    metrics = pd.DataFrame(table.rows).assign(**identity)
    fractions = [fraction[np.argsort(first.pair)] for fraction in fractions]
    hits = [hit[np.argsort(side.pair)] for hit, side in zip(hits, (first, second), strict=True)]
    return Scores(matches, metrics[METRICS_COLUMNS], _cells(list(matches), hits, fractions))


def _cells(directions: list[str], hits: list[np.ndarray], fractions: list[np.ndarray]) -> pd.DataFrame:
    """Return one row per pair and direction; the arrays are in the solution's order."""
    blocks = [
        pd.DataFrame({"pair": np.arange(len(hit)), "direction": direction, "match_score": hit, "foscttm": fraction})
        for direction, hit, fraction in zip(directions, hits, fractions, strict=True)
    ]
    return pd.concat(blocks, ignore_index=True)[CELL_COLUMNS]


class _Table:
    """Rows of the tidy table: each metric in two directions and their mean."""

    def __init__(self, forward: str, backward: str):
        self.forward, self.backward = forward, backward
        self.rows: list[dict] = []

    def both_ways(self, metric: str, forward: float, backward: float) -> None:
        values = {self.forward: forward, self.backward: backward, BOTH: (forward + backward) / 2}
        for direction, value in values.items():
            self._add(metric, direction, float(value), "ok", "")

    def unsupported(self, metric: str, reason: str) -> None:
        for direction in (self.forward, self.backward, BOTH):
            self._add(metric, direction, np.nan, "unsupported", reason)

    def _add(self, metric: str, direction: str, value: float, status: str, reason: str) -> None:
        self.rows.append({"direction": direction, "metric": metric, "value": value, "status": status, "reason": reason})


def _two_ways(function: Callable, first: Side, second: Side) -> tuple:
    return function(first, second), function(second, first)


def _match(matching: Callable, source: Side, target: Side) -> sp.csr_matrix:
    batches = {"batch_x": source.batch, "batch_y": target.batch}
    return matching(source.embedding, target.embedding, **batches, metric=source.metric)


def _score_matches(first: Side, second: Side, table: _Table) -> tuple[dict[str, sp.csr_matrix], list[np.ndarray]]:
    """Score the three matchings; return the matrices of the first, which are the ones to keep, and its hits."""
    truth = _two_ways(_partners, first, second)
    matched, hits = {}, {}
    for metric, matching in (
        ("match_score", match_snn),
        ("match_score_gaussian", match_gaussian),
        ("match_score_ot", match_ot),
    ):
        try:
            matched[metric] = [_match(matching, first, second), _match(matching, second, first)]
        except BatchTooLarge as error:
            table.unsupported(metric, str(error))
        else:
            hits[metric] = list(map(true_weights, matched[metric], truth))
            table.both_ways(metric, *(hit.mean() for hit in hits[metric]))
    forward, backward = matched["match_score"]
    table.both_ways(
        "cell_type_match",
        cell_type_match(forward, first.cell_type, second.cell_type),
        cell_type_match(backward, second.cell_type, first.cell_type),
    )
    return {table.forward: forward, table.backward: backward}, hits["match_score"]


def _score_distances(first: Side, second: Side, table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Score distances; return FOSCTTM of each cell of both modalities, both in the first one's order.

    All are in the embedding's metric, but for those that are called Euclidean.
    """
    x, y = first.embedding, second.embedding[_partners(first, second)]
    closer = {metric: count_closer(x, y, metric) for metric in {first.metric, "euclidean"}}
    own, euclidean = closer[first.metric], closer["euclidean"]
    variants = {
        "foscttm": own.fractions("half"),
        "foscttm_strict": own.fractions("strict"),
        "foscttm_euclidean": euclidean.fractions("half"),
        "foscttm_euclidean_strict": euclidean.fractions("strict"),
        "foscttm_within_batch": foscttm_within_batch(x, y, first.batch, first.metric),
        "top1_euclidean": euclidean.top1(),
    }
    for metric, (of_first, of_second) in variants.items():
        table.both_ways(metric, of_first.mean(), of_second.mean())
    return variants["foscttm"]


def _label_transfer(source: Side, target: Side) -> float:
    cell_types = source.cell_type, target.cell_type
    return label_transfer_accuracy(source.embedding, target.embedding, *cell_types, metric=source.metric)


# ---- identity and files --------------------------------------------------------------------------


def identify(embedding: ad.AnnData, solution: ad.AnnData, run: str, where: str) -> dict:
    """Return what the table says of every row: run, data set, split, method, variant, seed, transductive.

    A user's own embedding may leave out data set and split: the solution knows them.
    """
    identity = {"run": run}
    for key in ("dataset", "split"):
        said, known = (str(uns.get(key, "")) for uns in (embedding.uns, solution.uns))
        if said and known and said != known:
            raise ContractError(f"{where}: uns[{key!r}] is {said!r}, but the solution is of {known!r}")
        identity[key] = said or known
    identity.update({key: str(embedding.uns[key]) for key in ("method", "variant")})
    try:
        identity["seed"] = int(embedding.uns["seed"])
    except (TypeError, ValueError) as error:
        raise ContractError(f"{where}: uns['seed'] must be a whole number") from error
    identity["transductive"] = bool(_params(embedding, where).get("transductive", False))
    return identity


def _params(embedding: ad.AnnData, where: str) -> Mapping:
    params = embedding.uns["params"]
    if isinstance(params, str):
        try:
            params = json.loads(params)
        except json.JSONDecodeError as error:
            raise ContractError(f"{where}: uns['params'] is not JSON: {error}") from error
    if not isinstance(params, Mapping):
        raise ContractError(f"{where}: uns['params'] must be a map or a JSON map")
    return params


def write_matches(matches: sp.csr_matrix, path: str | Path) -> None:
    """Write a match matrix as scipy's ``.npz``."""
    if Path(path).suffix != ".npz":
        raise ContractError(f"{path}: a match matrix is written as .npz; change the name")
    with atomic(path) as temporary:
        sp.save_npz(temporary, matches)


def write_cells(cells: pd.DataFrame, path: str | Path) -> None:
    """Write the scores per cell, compressed; equal scores give equal bytes."""
    with atomic(path) as temporary:
        compression = {"method": "gzip", "mtime": 1}
        cells.to_csv(temporary, sep="\t", index=False, float_format="%.6g", compression=compression)
