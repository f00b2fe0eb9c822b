"""Take random small data sets through preparation, split, two methods, scoring and a figure; none may end in a fault.

Sizes, counts, names, file layouts and splits are drawn at random. A stage may refuse its input with a one-line message.
It may not raise anything else, nor lose a cell silently.
"""

import contextlib
import io
import json
import re
import runpy
import shutil
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import yaml
from scipy.io import mmwrite
from tqdm import tqdm

from clue.benchmark.config import load
from clue.benchmark.contracts import read_dataset, read_solution, read_train
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import run_method
from clue.benchmark.program import run_program

PROJECT = Path(__file__).resolve().parents[1]
NAME = "soak"
KINDS = {"rna": "Gene Expression", "atac": "Peaks", "adt": "Antibody Capture"}
NAMES = ("a$b", "_low", "100 %", "T" * 90, "日本語", "תא", "<b>&amp;", "it's", "a/b", "x y", "NA", "1", "é")
"""Names of cell types and batches."""


class Fault(Exception):
    """Something that must not happen: a traceback, or a cell that is lost."""


def main(number: int = 200, first: int = 0, folder: Path = Path("build/soak")) -> None:
    """Run the program in the project folder.

    Parameters
    ----------
    number
        Number of data sets.
    first
        Seed of the first data set; the next has the next seed.
    folder
        Folder for the files; faulty data sets stay there.
    """
    ends: Counter[str] = Counter()
    for seed in tqdm(range(first, first + number), mininterval=5):
        try:
            with warnings.catch_warnings(action="ignore"):
                ends[soak(seed, folder / str(seed))] += 1
            shutil.rmtree(folder / str(seed))
        except Fault as fault:
            ends["fault"] += 1
            print(f"seed {seed}: {fault}", flush=True)
    print(*(f"{n:4d}  {end}" for end, n in ends.most_common()), sep="\n")
    if ends["fault"]:
        raise BenchmarkError(f"{ends['fault']} of {number} data sets ended in a fault; see {folder}")


def soak(seed: int, folder: Path) -> str:
    """Take one data set through all stages; return ``"scored"``, or the stage that refused it and its reason."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PROJECT / "config", folder / "config")
    rng = np.random.default_rng(seed)
    cells = draw(rng)
    spec = write(cells, folder / "mine", rng)
    spec["splits"] = {"drawn": draw_split(cells, spec["prepare"]["kind"] == "own", rng)}
    if rng.random() < 0.5 and (shared := shared_names(cells)):
        spec["expect"] = {"n_cells": len(shared)}  # allows any loss
    (folder / "config" / "datasets" / f"{NAME}.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True), "utf-8")
    for stage in (download, prepare, split, *(method(name, rng) for name in ("random", rng.choice(["cca", "ridge"])))):
        if reason := attempt(lambda stage=stage: stage(folder, cells)):
            return f"refused by {stage.__name__}: {reason}"
    return "scored"


def attempt(call: Callable[[], None]) -> str:
    """Return the line with which a stage refuses its input, without numbers; empty if it accepts the input."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            call()
        return ""
    except (BenchmarkError, SystemExit) as end:  # a method exits by itself
        if "\n" not in (line := str(end)) and not line.isdigit():
            return re.sub("[0-9]+", "n", line.rpartition("/")[2])
        raise Fault(f"exit status {line}: {printed.getvalue()[-1500:]}") from end
    except Fault:
        raise
    except Exception as error:  # this program looks for errors of any kind
        raise Fault("".join(traceback.format_exception(error)[-3:])) from error


# ---- drawing data --------------------------------------------------------------------------------


def draw(rng: np.random.Generator) -> dict[str, ad.AnnData]:
    """Return cells of two modalities; some may lack one of them."""
    n_cells = int(rng.choice([1, 2, 3, 8, 30, 100], p=[0.03, 0.03, 0.04, 0.1, 0.4, 0.4]))
    second = str(rng.choice(["atac", "adt"]))
    ending = rng.choice(["-1", "", "_s1", " x"])
    names = [f"AAAC{i:03d}{ending}" for i in range(n_cells)]
    obs = pd.DataFrame(index=names)
    for column, most in (("sample", 5), ("type", 8), ("person", 6)):
        obs[column] = rng.choice(NAMES[: rng.integers(1, most)], n_cells)
    modalities = {}
    for modality in ("rna", second):
        n_features = int(rng.choice([1, 2, 5, 40], p=[0.03, 0.07, 0.3, 0.6]))
        rate = rng.gamma(0.5, rng.choice([0.1, 2, 300]), n_features)
        counts = rng.poisson(rate * rng.gamma(2, 0.5, (n_cells, 1)) * rng.choice([0, 1], p=[0.05, 0.95]))
        features = pd.DataFrame(index=[f"{rng.choice(NAMES)}{modality}{j}" for j in range(n_features)])
        modalities[modality] = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.copy(), var=features)
    lost = rng.choice([0, 0.03, 0.5], p=[0.6, 0.3, 0.1])
    modalities[second] = modalities[second][rng.permutation(np.flatnonzero(rng.random(n_cells) >= lost))].copy()
    return modalities


def write(cells: dict[str, ad.AnnData], folder: Path, rng: np.random.Generator) -> dict:
    """Write the files of a data set in a random layout; return its YAML."""
    folder.mkdir()
    layout = rng.choice(["h5mu", "h5ad", "raw", "folder"])
    columns = {"batch": "sample", "donor": "person"} | ({"cell_type": "type"} if rng.random() < 0.7 else {})
    settings = {"kind": "own", **columns}
    if layout == "folder":
        write_folder(cells, folder)
        settings = {"kind": "tenx", "samples": {"one": ""}}
    elif layout == "h5mu":
        md.MuData(cells).write(folder / "my data.h5mu")
        settings["file"] = "my data.h5mu"
    else:
        for modality, adata in cells.items():
            if layout == "raw":
                adata = ad.AnnData(adata.X.log1p(), obs=adata.obs, var=adata.var, layers={"n": adata.X})
                settings["layer"] = "n"
            adata.write_h5ad(folder / f"{modality}.h5ad")
        settings["files"] = {modality: f"{modality}.h5ad" for modality in cells}
    source = {"kind": "files", "folder": "mine", "files": sorted(path.name for path in folder.iterdir())}
    return {"modalities": list(cells), "source": source, "prepare": settings}


def write_folder(cells: dict[str, ad.AnnData], folder: Path) -> None:
    """Write the cells that have both modalities as Cell Ranger does, uncompressed; remove the others from `cells`."""
    first, second = cells.values()
    shared = first.obs_names[first.obs_names.isin(second.obs_names)]
    for modality, adata in cells.items():
        cells[modality] = adata[shared].copy()
    counts = sp.hstack([adata.X for adata in cells.values()])
    mmwrite(folder / "matrix.mtx", counts.T.astype(int))
    features = [f"{name}\t{name}\t{KINDS[k]}" for k, adata in cells.items() for name in adata.var_names]
    (folder / "features.tsv").write_text("\n".join(features), "utf-8")
    (folder / "barcodes.tsv").write_text("\n".join(shared), "utf-8")


def draw_split(cells: dict[str, ad.AnnData], is_annotated: bool, rng: np.random.Generator) -> dict:
    """Draw the settings of a split; some need annotations of cells."""
    obs = next(iter(cells.values())).obs
    value = str(rng.choice([*obs["sample"], NAMES[0]]))
    settings = [
        {"kind": "random", "fraction": float(rng.choice([0.1, 0.3, 0.9]))},
        {"kind": "random", "n_test": int(rng.integers(1, len(obs) + 2))},
        {"kind": "donors", "fraction": 0.3},
        {"kind": "batches", "batches": [value]},
        {"kind": "predefined", "column": "batch", "test": value},
    ]
    paired = {"paired_fraction": float(rng.choice([0.05, 0.3]))} if rng.random() < 0.3 else {}
    return {**settings[rng.integers(5 if is_annotated else 2)], **paired, "seed": 0}


def shared_names(cells: dict[str, ad.AnnData]) -> set[str]:
    """Return the names of the cells that have both modalities."""
    first, second = cells.values()
    return set(first.obs_names) & set(second.obs_names)


# ---- stages --------------------------------------------------------------------------------------


def program(name: str) -> Callable:
    """Return the function of a program in ``scripts/``."""
    module = runpy.run_path(str(PROJECT / "scripts" / f"{name}.py"))
    return module.get("main") or module["embed"]


def download(folder: Path, cells: dict[str, ad.AnnData]) -> None:
    """Link the raw files."""
    program("download")(dataset=NAME, folder=folder / "raw", project=folder)


def prepare(folder: Path, cells: dict[str, ad.AnnData]) -> None:
    """Prepare the data; all cells that have both modalities must be there, with all their counts."""
    program("prepare")(dataset=NAME, raw=folder / "raw", output=folder / "all.h5mu", project=folder)
    mdata, shared = read_dataset(folder / "all.h5mu"), shared_names(cells)
    check(set(mdata.obs_names) == shared, f"{mdata.n_obs} cells prepared of {len(shared)}")
    was_lost = len(shared) < max(adata.n_obs for adata in cells.values())
    check(bool(mdata.uns["dropped"]) == was_lost, f"dropped: {mdata.uns['dropped']!r}")
    for modality, adata in cells.items():
        there = mdata.mod[modality]
        check(there.X.sum() == adata[there.obs_names].X.sum(), f"counts of {modality} differ")


def split(folder: Path, cells: dict[str, ad.AnnData]) -> None:
    """Split the data; each cell must be a training or a test cell."""
    program("make_task")(folder / "all.h5mu", NAME, "drawn", folder, project=folder)
    train, n_test = read_train(folder / "train.h5mu"), read_solution(folder / "solution.h5ad").n_obs
    n_train = len(set().union(*(adata.obs_names for adata in train.mod.values())))
    n_cells = read_dataset(folder / "all.h5mu").n_obs
    check(n_train + n_test == n_cells, f"{n_train} training and {n_test} test cells of {n_cells}")


def method(name: str, rng: np.random.Generator) -> Callable[[Path, dict[str, ad.AnnData]], None]:
    """Return the stage that embeds with a method and scores it."""
    seed = int(rng.integers(2**32))

    def stage(folder: Path, cells: dict[str, ad.AnnData]) -> None:
        spec, job = load("methods", name, PROJECT), folder / name / "default" / "seed-0"
        params = json.dumps(spec["params"] | spec["budgets"].get("test", {}))
        first, second = cells
        argv = ["--train", folder / "train.h5mu", "--tests", *(folder / f"test_{k}.h5ad" for k in cells)]
        argv += ["--embedding", job / "embedding.h5ad", "--method", name, "--variant", "default", "--seed", seed]
        argv += ["--params", params, "--device", "cpu", "--threads", 1]
        run_method(program(f"methods/{Path(spec['script']).stem}"), list(map(str, argv)))
        matches = [job / f"match_{first}2{second}.npz", job / f"match_{second}2{first}.npz"]
        tables = {"metrics": job / "metrics.tsv", "cells": job / "cells.tsv.gz"}
        program("score")(job / "embedding.h5ad", folder / "solution.h5ad", matches, **tables)
        scored, n_test = pd.read_csv(tables["cells"], sep="\t"), read_solution(folder / "solution.h5ad").n_obs
        check(len(scored) == 2 * n_test, f"{len(scored)} rows of cells for {n_test} test cells in two directions")

    stage.__name__ = name
    return stage


def check(is_right: bool, otherwise: str) -> None:
    """Raise a `Fault` if something is not right."""
    if not is_right:
        raise Fault(otherwise)


if __name__ == "__main__":
    run_program(main)
