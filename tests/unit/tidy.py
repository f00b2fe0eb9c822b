"""Tidy tables of every shape, test cells with their solution, and the text of a figure."""

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from clue.benchmark import contracts
from clue.benchmark.report import tables

NAN = float("nan")
JOB_COLUMNS = ["dataset", "split", "method", "variant", "seed"]
NO_INTERVALS = pd.DataFrame(columns=[*tables.JOB, "seed", "metric", "low", "high"])


def metrics(*jobs: tuple, run: str = "test") -> pd.DataFrame:
    """Return a tidy table from (dataset, split, method, variant, seed, match score, foscttm or status, reason)."""
    rows = []
    for *job, match, foscttm in jobs:
        common = {"run": run, **dict(zip(JOB_COLUMNS, map(str, job), strict=True)), "transductive": "False"}
        if isinstance(match, str):
            rows.append({**common, "direction": "", "metric": "", "value": NAN, "status": match, "reason": foscttm})
            continue
        for metric, value in (("match_score", match), ("foscttm", foscttm)):
            ok = {"metric": metric, "value": value, "status": "ok", "reason": ""}
            rows += [{**common, "direction": direction, **ok} for direction in ("rna2adt", "adt2rna", "both")]
    return pd.DataFrame(rows, columns=tables.METRICS_COLUMNS)


def seeds(method: str, *scores: tuple, variant: str = "default") -> list[tuple]:
    """Return a job for `metrics` from each (match score, foscttm), of seeds 0, 1 … on one split."""
    return [("a", "s", method, variant, seed, *score) for seed, score in enumerate(scores)]


def value(table: pd.DataFrame, metric: str, direction: str) -> float:
    """Return the only value of a metric in one direction."""
    return table.set_index(["metric", "direction"])["value"][metric, direction]


def resources(*jobs: tuple) -> pd.DataFrame:
    """Return a table from (dataset, split, method, variant, seed, seconds, MB, GPU MB)."""
    rows = [dict(zip([*JOB_COLUMNS, "seconds", "peak_memory_mb", "gpu_memory_mb"], job, strict=True)) for job in jobs]
    rows = [{"run": "test", "device": "cpu", "threads": 1, **row} for row in rows]
    return pd.DataFrame(rows, columns=tables.RESOURCES_COLUMNS)


def solution_of(n_cells: int, types: list[str], batches: list[str], seed: int = 0, **uns) -> ad.AnnData:
    """Return a solution of RNA and proteins whose files have shuffled cells."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"batch": batches, "cell_type": types}, index=[f"barcode_{i}" for i in range(n_cells)])
    for name in ("rna", "adt"):
        obs[name] = rng.permutation(contracts.names_of_test_cells(name, n_cells))
    uns = {"modalities": ["rna", "adt"], "dataset": "d", "split": "s", "labels": "published"} | uns
    return ad.AnnData(np.zeros((n_cells, 0), dtype=np.float32), obs=obs, uns=uns)


def embedding_of(solution: ad.AnnData, points: dict[str, np.ndarray], **uns) -> ad.AnnData:
    """Return an embedding, in file order, of points whose rows are in the order of the solution."""
    blocks, obs = [], []
    for name, values in points.items():
        cells = solution.obs[[name, "batch"]].astype(str).set_axis(["cell", "batch"], axis=1).assign(modality=name)
        order = np.argsort(cells["cell"].to_numpy())
        blocks.append(values[order].astype(np.float32))
        obs.append(cells.iloc[order].set_index("cell", drop=False).rename_axis(None))
    uns = {"method": "m", "variant": "v", "seed": 3, "params": "{}", "dataset": "d", "split": "s"} | uns
    return ad.AnnData(np.concatenate(blocks), obs=pd.concat(obs), uns=uns)


CONTROLS = (("a", "s", "random", "default", 0, 0.01, 0.5), ("a", "s", "oracle", "default", 0, 1.0, 0.0))
SHAPES = {
    "usual": [("a", "s", m, "default", i, 0.1 + 0.01 * i, 0.05) for m in ("clue", "cca") for i in range(3)],
    "one seed": [*seeds("clue", (0.1, 0.05)), *seeds("clue", (0.08, 0.07), variant="no_mse")],
    "nan": [*seeds("clue", (NAN, 0.05)), *seeds("clue", (0.1, NAN), variant="no_cross")],
    "zero": [("a", "s", "clue", "default", i, 0.0, 0.0) for i in range(2)],
    "failed": [("a", "s", "clue", "default", 0, "failed", "out of memory"), ("a", "s", "cca", "default", 0, 0.1, 0.1)],
    "unsupported": [("a", "s", "clue", "default", i, "unsupported", "does not support rna+atac") for i in range(2)],
    "missing method": [("a", "s", "clue", "default", 0, 0.1, 0.1), ("b", "s", "cca", "default", 0, 0.1, 0.1)],
    "many methods": [("a", "s", f"method_{m}", "default", i, 0.1, 0.1) for m in range(30) for i in range(2)],
    "many splits": [(d, "s", "clue", "default", 0, 0.1, 0.1) for d in "abcdefg"],
    "controls only": [],
}


def texts(figure: plt.Figure) -> str:
    """Return all text in a figure."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text) if text.get_text())


def check_figure(path: Path) -> None:
    """Check that there is a PNG of 300 dpi and a PDF with TrueType fonts."""
    with Image.open(path) as image:
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert image.width > 500
    pdf = path.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf
