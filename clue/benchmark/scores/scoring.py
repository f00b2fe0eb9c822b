"""Score an embedding against the solution: match matrices and a tidy table of metrics.

All methods are scored by the same code. With more than two modalities, each pair is scored, and so is the mean over
pairs. Each row of the solution names the test cells that are the same cell. Batches and cell types are the solution's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import (
    ContractError,
    cells_of_test_file,
    check_embedding_fits,
    check_prediction,
    is_by_pairs,
    metric_of,
    names_of_test_cells,
    of_pair,
)
from clue.benchmark.scores import METRICS_COLUMNS
from clue.benchmark.scores.prediction import prediction_scores
from clue.matching import BatchTooLarge, Metric, as_points, match_gaussian, match_ot, match_snn, nearest
from clue.metrics import cell_type_match, count_closer, foscttm_within_batch, label_transfer_accuracy, true_weights

NEIGHBOURS = 30
"""Number of cells of the other modality that the metrics ``neighbours_*`` average over."""
CELL_COLUMNS = ["pair", "direction", "match_score", "foscttm"]
BOTH = "both"
"""The direction that is the mean of both or, with more than two modalities, of all directions."""
MATCHINGS = {"match_score": match_snn, "match_score_gaussian": match_gaussian, "match_score_ot": match_ot}
"""Only the matrices of the first one are kept."""
BY_PAIRS = "by pairs"
"""The reason in rows with scores if the method ran on each pair of modalities separately."""

Values = dict[str, tuple[float, float] | str]
"""For each metric, its values in both directions, or why it has none."""


@dataclass
class Cells:
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
    """Match matrices by direction (``rna2adt``, ``adt2rna``), the rows of ``metrics.tsv``, and scores per cell.

    A pair of modalities that the method did not run on has match matrices without entries.
    """

    matches: dict[str, sp.csr_matrix]
    metrics: pd.DataFrame
    cells: pd.DataFrame
    """Match score and FOSCTTM of each pair (a row of the solution) in each direction; their means are the metrics."""


# ---- alignment -----------------------------------------------------------------------------------


def align(embedding: ad.AnnData, solution: ad.AnnData, pair: Sequence[str], where: str) -> tuple[Cells, Cells]:
    """Return both modalities of a pair in file order, with what the solution says about each cell.

    Raises
    ------
    ContractError
        If the rows are not the test cells of the solution, or batches disagree.
    """
    first, second = (_cells_of(embedding, solution, name, where) for name in pair)
    return first, second


def _cells_of(embedding: ad.AnnData, solution: ad.AnnData, modality: str, where: str) -> Cells:
    rows = (embedding.obs["modality"] == modality).to_numpy()
    cells = cells_of_test_file(solution, modality)
    batch, cell_type, pair = (cells[key].to_numpy() for key in ("batch", "cell_type", "pair"))
    if differ := int((embedding.obs["batch"].astype(str).to_numpy()[rows] != batch).sum()):
        raise ContractError(f"{where}: obs['batch'] of {differ} {modality} cells differs from the test file's")
    return Cells(modality, np.asarray(embedding.X)[rows], metric_of(embedding), batch, cell_type, pair)


def _partners(source: Cells, target: Cells) -> np.ndarray:
    """Return the row in `target` of the partner of each cell of `source`."""
    row = np.empty(len(target.pair), dtype=np.int64)
    row[target.pair] = np.arange(len(target.pair))
    return row[source.pair]


# ---- metrics -------------------------------------------------------------------------------------


def score(
    embedding: ad.AnnData,
    solution: ad.AnnData,
    run: str = "",
    where: str = "embedding",
    predictions: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Match the modalities of each pair and compute every metric.

    Parameters
    ----------
    embedding, solution
        Checked contents of ``embedding.h5ad`` and ``solution.h5ad``.
    run
        The name of the run, for the table.
    where
        The name of the embedding in error messages.
    predictions
        Contents of ``predictions.npz``, if the method predicts.
    """
    identity = identify(embedding, solution, run, where)
    if embedding.n_vars == 0:
        raise ContractError(f"{where}: X has no columns")
    modalities = [str(name) for name in solution.uns["modalities"]]
    check_embedding_fits(
        embedding, {name: pd.Index(names_of_test_cells(name, solution.n_obs)) for name in modalities}, where
    )
    found: dict[tuple[str, ...], Scores] = {}
    for pair in combinations(modalities, 2):
        mean = BOTH if len(modalities) == 2 else "+".join(pair)
        rows = of_pair(embedding, *pair)
        if rows.n_obs:
            found[pair] = _score_pair(*align(rows, solution, pair, where), mean, solution, predictions)
    names = next(iter(found.values())).metrics["metric"].unique()
    missing = {pair: _unsupported(embedding, pair, names, solution.n_obs) for pair in combinations(modalities, 2)}
    parts = list((missing | found).values())
    metrics = _with_overall([part.metrics for part in parts])
    if is_by_pairs(embedding):
        metrics.loc[metrics["status"] == "ok", "reason"] = BY_PAIRS
    matches = {direction: matrix for part in parts for direction, matrix in part.matches.items()}
    cells = pd.concat([part.cells for part in parts if len(part.cells)], ignore_index=True)
    return Scores(matches, metrics.assign(**identity)[METRICS_COLUMNS], cells)


def _score_pair(
    first: Cells, second: Cells, mean: str, solution: ad.AnnData, predictions: Mapping[str, np.ndarray] | None
) -> Scores:
    """Score the two modalities of a pair; `mean` is the table's name for the mean of its two directions."""
    directions = _directions(first.modality, second.modality)
    values, matches, hits = _score_matches(first, second)
    distances, fractions = _score_distances(first, second)
    values |= distances | {"label_transfer_accuracy": (_label_transfer(first, second), _label_transfer(second, first))}
    if second.modality in solution.obsm and solution.n_obs > 1:
        values |= _score_predictions(first, second, solution, predictions)
    # Put scores per cell in the solution's order. FOSCTTM of both directions is in the first file's order, but each
    # match score is in the order of its own file.
    cells = [
        pd.DataFrame({"match_score": hit[np.argsort(side.pair)], "foscttm": fraction[np.argsort(first.pair)]}).assign(
            pair=np.arange(solution.n_obs), direction=direction
        )
        for direction, side, hit, fraction in zip(directions, (first, second), hits, fractions, strict=True)
    ]
    matched = dict(zip(directions, matches, strict=True))
    return Scores(matched, _rows(values, *directions, mean), pd.concat(cells, ignore_index=True)[CELL_COLUMNS])


def _directions(first: str, second: str) -> tuple[str, str]:
    return f"{first}2{second}", f"{second}2{first}"


def _unsupported(embedding: ad.AnnData, pair: Sequence[str], metrics: Sequence[str], n_cells: int) -> Scores:
    """Return rows with the reason, and matches without entries, for a pair that the method did not run on."""
    name, directions = "+".join(pair), _directions(*pair)
    reason = str(embedding.uns.get("left_out", {}).get(name, f"does not support {name}"))
    nothing = dict.fromkeys(directions, sp.csr_matrix((n_cells, n_cells), dtype=np.float32))
    return Scores(nothing, _rows(dict.fromkeys(metrics, reason), *directions, name), pd.DataFrame(columns=CELL_COLUMNS))


def _rows(values: Values, forward: str, backward: str, mean: str) -> pd.DataFrame:
    """Return the rows of the tidy table: each metric in two directions and their mean."""
    rows = []
    for metric, found in values.items():
        numbers = (np.nan,) * 3 if isinstance(found, str) else (*found, (found[0] + found[1]) / 2)
        status, reason = ("unsupported", found) if isinstance(found, str) else ("ok", "")
        for direction, value in zip((forward, backward, mean), numbers, strict=True):
            rows.append([direction, metric, float(value), status, reason])
    return pd.DataFrame(rows, columns=["direction", "metric", "value", "status", "reason"])


def _with_overall(pairs: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all pairs and, if there are several, the mean of all directions where each has a value."""
    rows = pd.concat(pairs, ignore_index=True)
    if len(pairs) == 1:
        return rows
    means = rows[rows["direction"].str.contains("+", regex=False)]
    overall = means.groupby("metric", sort=False)["value"].agg(lambda values: values.mean(skipna=False)).reset_index()
    first_gap = means.sort_values("status", key=lambda status: status == "ok", kind="stable")
    overall = overall.merge(first_gap.drop_duplicates("metric")[["metric", "status", "reason"]], on="metric")
    return pd.concat([rows, overall.assign(direction=BOTH)], ignore_index=True)


def _match(matching: Callable, source: Cells, target: Cells) -> sp.csr_matrix:
    batches = {"batch_x": source.batch, "batch_y": target.batch}
    return matching(source.embedding, target.embedding, **batches, metric=source.metric)


def _score_matches(first: Cells, second: Cells) -> tuple[Values, list[sp.csr_matrix], list[np.ndarray]]:
    """Score the three matchings. Also return the matrices of the first one, which are kept, and its hits."""
    truth = _partners(first, second), _partners(second, first)
    values: Values = {}
    kept, kept_hits = [], []
    for metric, matching in MATCHINGS.items():
        try:
            matched = [_match(matching, first, second), _match(matching, second, first)]
        except BatchTooLarge as error:
            values[metric] = str(error)
            continue
        hits = list(map(true_weights, matched, truth))
        values[metric] = hits[0].mean(), hits[1].mean()
        kept, kept_hits = kept or matched, kept_hits or hits
    types = first.cell_type, second.cell_type
    values["cell_type_match"] = cell_type_match(kept[0], *types), cell_type_match(kept[1], *types[::-1])
    return values, kept, kept_hits


def _score_distances(first: Cells, second: Cells) -> tuple[Values, tuple[np.ndarray, np.ndarray]]:
    """Score distances. Also return FOSCTTM of each cell of both modalities, in the first modality's order.

    All use the embedding's metric, except those that are called Euclidean.
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
    return {metric: (one.mean(), other.mean()) for metric, (one, other) in variants.items()}, variants["foscttm"]


def _label_transfer(source: Cells, target: Cells) -> float:
    cell_types = source.cell_type, target.cell_type
    return label_transfer_accuracy(source.embedding, target.embedding, *cell_types, metric=source.metric)


def _score_predictions(
    first: Cells, second: Cells, solution: ad.AnnData, predictions: Mapping[str, np.ndarray] | None
) -> Values:
    """Score the predictions of an embedding's neighbours and, if the method predicts, its own predictions."""
    found = []
    for source, target in ((first, second), (second, first)):
        direction, measured = f"{source.modality}2{target.modality}", solution.obsm[target.modality]
        predicted = {"neighbours": _of_neighbours(source, target, measured)}
        if predictions is not None:
            if direction not in predictions:
                raise ContractError(f"predictions.npz: lacks {direction}; delete it and run again")
            check_prediction(predictions[direction], measured.shape, f"predictions.npz: {direction}")
            predicted["predict"] = predictions[direction]
        in_file_order = measured.toarray()[source.pair]
        scores = {kind: prediction_scores(values, in_file_order) for kind, values in predicted.items()}
        found.append({f"{kind}_{metric}": value for kind in scores for metric, value in scores[kind].items()})
    forward, backward = found
    return {metric: (forward[metric], backward[metric]) for metric in forward}


def _of_neighbours(source: Cells, target: Cells, measured: sp.csr_matrix) -> np.ndarray:
    """Return, for each cell of `source`, the mean of the values measured in its nearest cells of `target`.

    The cell's own partner is left out, since a prediction is of values that were not measured.
    """
    x, y = as_points(source.embedding, target.embedding, metric=source.metric)
    k = min(NEIGHBOURS, len(y) - 1)
    _, found = nearest(x, y, k + 1)
    others = found != _partners(source, target)[:, None]
    others[others.all(axis=1), -1] = False
    rows = target.pair[found[others]]
    weights = sp.csr_matrix((np.full(len(rows), 1 / k), rows, np.arange(0, len(rows) + 1, k)), (len(x), len(y)))
    return (weights @ measured).toarray()


# ---- identity ------------------------------------------------------------------------------------


def identify(embedding: ad.AnnData, solution: ad.AnnData, run: str, where: str) -> dict:
    """Return the columns that all rows of the table share: run, data set, split, method, variant, seed, transductive.

    A user's own embedding may leave out its parameters, and data set and split, which the solution also has.
    """
    identity = {"run": run}
    for key in ("dataset", "split"):
        own, known = (str(uns.get(key, "")) for uns in (embedding.uns, solution.uns))
        if own and known and own != known:
            raise ContractError(f"{where}: uns[{key!r}] is {own!r}, but the solution's is {known!r}")
        identity[key] = own or known
    identity.update({key: str(embedding.uns[key]) for key in ("method", "variant")})
    try:
        identity["seed"] = int(embedding.uns["seed"])
        params = embedding.uns.get("params", {})  # another program may have none
        params = dict(json.loads(params) if isinstance(params, str) else params)
    except (TypeError, ValueError) as error:
        wanted = "uns['seed'] must be a whole number, and uns['params'] a map or a JSON map"
        raise ContractError(f"{where}: {wanted}") from error
    parts = params.values() if is_by_pairs(embedding) else [params]
    identity["transductive"] = any(part.get("transductive", False) for part in parts)
    return identity
