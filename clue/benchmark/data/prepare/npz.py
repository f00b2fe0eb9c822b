"""Sparse matrices of scipy (``.npz``), features × cells, with a text file of features each and one table of cells."""

import zipfile
from pathlib import Path

import anndata as ad
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec, counts_of, obs_of, reading


def prepare_npz(spec: Spec, folder: Path) -> Modalities:
    """Return the modalities; the table of cells is in the order of the matrices' columns."""
    settings = spec["prepare"]
    path = folder / settings["cells"]
    with reading(path):
        cells = pd.read_csv(path, index_col=0)
    cells.index = cells.index.astype(str)
    obs = obs_of(cells, settings["obs"], path)
    modalities = {}
    for modality, file in settings["files"].items():
        names = _lines(folder / settings["features"][modality])
        with reading(folder / file):
            if not zipfile.is_zipfile(folder / file):
                # numpy would take it for a pickle, and say so
                raise zipfile.BadZipFile("not an npz file")
            matrix = sp.load_npz(folder / file)
        if matrix.shape != (len(names), len(obs)):
            raise PrepareError(
                f"{folder / file}: is {matrix.shape[0]} × {matrix.shape[1]}, but {settings['features'][modality]} names"
                f" {len(names)} features and {path.name} {len(obs)} cells"
            )
        counts = counts_of(matrix.T, str(folder / file))
        modalities[modality] = ad.AnnData(counts, obs=obs.copy(), var=pd.DataFrame(index=names))
    return modalities


def _lines(path: Path) -> list[str]:
    with reading(path):
        return path.read_text(encoding="utf-8").split()
