"""Training from counts in a file: the same results as in memory, nothing left behind, clear errors."""

import errno
import re
import tempfile
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import clue
from clue import disk, sparse
from clue.simulate import simulate

WIDTHS = {"n_latent": 6, "encoder": (1, 16), "decoder": (1, 16), "discriminator": (1, 16), "n_components": 10}
SMALL = {"batch_key": "batch", **WIDTHS}
SHORT = {"max_steps": 12, "warmup_steps": 4, "check_steps": 4, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def data():
    """RNA, ATAC and proteins of the same 240 cells."""
    return simulate(240, {"rna": 80, "atac": 100, "adt": 20}, n_batches=2, seed=0)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder for temporary files; blocks are small enough for several per file."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(sparse, "BLOCK", 32)
    monkeypatch.setattr(disk, "PART", 100)
    return folder


def in_files(data, folder, kind):
    """Write the data and open them backed."""
    if kind == "h5mu":
        data.write(folder / "data.h5mu")
        return md.read_h5mu(folder / "data.h5mu", backed="r")
    for k, adata in data.mod.items():
        adata.write_h5ad(folder / f"{k}.h5ad")
    return {k: ad.read_h5ad(folder / f"{k}.h5ad", backed="r") for k in data.mod}


def unpaired(data):
    """Cells of another batch, features in another order."""
    extra = {k: data[k][:50, ::-1].copy() for k in ("rna", "adt")}
    for k, adata in extra.items():
        adata.obs_names = [f"{k}_{i}" for i in range(adata.n_obs)]
        adata.obs["batch"] = "new"
    return extra


def same_weights(first, second):
    first, second = first.network.state_dict(), second.network.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["h5mu", "h5ad"])
@pytest.mark.parametrize("n_features", [{}, {"rna": 40, "atac": 60}], ids=["all", "variable"])
def test_training_equals_training_in_memory(data, tmp_path, scratch, kind, n_features):
    inside = clue.CLUE(data, n_features=n_features, **SMALL).fit(**SHORT)
    outside = clue.CLUE(in_files(data, tmp_path, kind), n_features=n_features, **SMALL)
    for k, prepared in outside.preprocessors.items():
        counts = sparse.columns(prepared.align(outside._data[k]), prepared.selected)
        assert disk.is_mapped(counts.data) and disk.is_mapped(counts.indices)
    assert same_weights(inside, outside.fit(**SHORT))
    # more cells, these in memory
    inside.fit(unpaired(data), **SHORT)
    assert same_weights(inside, outside.fit(unpaired(data), **SHORT))
    assert not list(scratch.glob("clue-*"))


def test_components_with_a_query_are_chosen_and_fitted_as_in_memory(data, tmp_path, scratch, monkeypatch):
    monkeypatch.setattr("clue.components.ADVANTAGE", -np.inf)
    widths = SMALL | {"n_components": None}
    inside = clue.CLUE(data, query=unpaired(data), **widths)
    outside = clue.CLUE(in_files(data, tmp_path, "h5ad"), query=unpaired(data), **widths)
    for k, fitted in inside.preprocessors.items():
        assert fitted.readouts == outside.preprocessors[k].readouts != []
        np.testing.assert_array_equal(fitted.transform(data[k]), outside.preprocessors[k].transform(data[k]))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux shows how maps are read")
def test_nothing_is_read_ahead_while_training(data, tmp_path, scratch):
    """Otherwise each row of a mini-batch reads megabytes, again and again if the data do not fit into memory."""

    def maps_without_read_ahead():
        parts = re.split(r"^[0-9a-f]+-[0-9a-f]+ ", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
        flags = [re.search(r"VmFlags:(.*)", part)[1].split() for part in parts if str(scratch) in part]
        return len(flags), sum("rr" in each for each in flags)

    model = clue.CLUE(in_files(data, tmp_path, "h5ad"), **SMALL)
    during = []
    model.network.encoders["rna"].register_forward_hook(lambda *_: during.append(maps_without_read_ahead()))
    model.fit(**SHORT)
    # values and features of three modalities
    assert set(during) == {(6, 6)}
    assert maps_without_read_ahead() == (6, 0)


def test_checkpoint_belongs_to_the_data_wherever_they_are(data, tmp_path, scratch, caplog):
    caplog.set_level("INFO")
    always = SHORT | {"checkpoints": tmp_path / "checkpoints", "checkpoint_seconds": 0}
    outside = clue.CLUE(in_files(data, tmp_path, "h5ad"), **SMALL).fit(**always)
    assert "resuming" not in caplog.text
    assert same_weights(outside, clue.CLUE(data, **SMALL).fit(**always))
    assert "resuming at step 12" in caplog.text


def test_dense_files_work_and_csc_is_refused(data, tmp_path, scratch):
    inside = clue.CLUE({k: data[k] for k in ("rna", "adt")}, **SMALL).fit(**SHORT)

    def converted(convert, name):
        for k in inside.modalities:
            changed = ad.AnnData(convert(data[k].X), obs=data[k].obs, var=data[k].var[[]])
            changed.write_h5ad(tmp_path / f"{k}_{name}.h5ad")
        return {k: ad.read_h5ad(tmp_path / f"{k}_{name}.h5ad", backed="r") for k in inside.modalities}

    dense = converted(lambda counts: counts.toarray(), "dense")
    assert same_weights(inside, clue.CLUE(dense, **SMALL).fit(**SHORT))
    with pytest.raises(ValueError, match="rna: X is csc in its file"):
        clue.CLUE(converted(sp.csc_matrix, "csc"), **SMALL)


def test_duplicate_entries_in_a_file_are_summed(data, tmp_path, scratch):
    inside = {k: data[k] for k in ("rna", "adt")}
    for k, adata in inside.items():
        counts = adata.X
        halves = np.stack([counts.data - 1, np.ones_like(counts.data)], axis=1).ravel().astype(np.uint16)
        twice = sp.csr_matrix((halves, np.repeat(counts.indices, 2), 2 * counts.indptr), shape=counts.shape)
        ad.AnnData(twice, obs=adata.obs, var=adata.var[[]]).write_h5ad(tmp_path / f"{k}.h5ad")
    outside = {k: ad.read_h5ad(tmp_path / f"{k}.h5ad", backed="r") for k in inside}
    assert outside["rna"].X[:].nnz == 2 * inside["rna"].X.nnz
    assert same_weights(clue.CLUE(inside, **SMALL).fit(**SHORT), clue.CLUE(outside, **SMALL).fit(**SHORT))


def test_file_must_hold_counts(data, tmp_path, scratch):
    backed = in_files(data, tmp_path, "h5ad")
    half = data["rna"].copy()
    half.X = half.X * 0.5
    half.write_h5ad(tmp_path / "half.h5ad")
    with pytest.raises(ValueError, match="rna: X must hold raw counts"):
        clue.CLUE(backed | {"rna": ad.read_h5ad(tmp_path / "half.h5ad", backed="r")}, **SMALL)


def test_full_disk_is_one_clear_line(data, tmp_path, scratch, monkeypatch):
    backed = in_files(data, tmp_path, "h5ad")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix: open("/dev/full", "wb", buffering=0))
    with pytest.raises(OSError, match=f"No space left on device, for counts kept on disk.*{scratch}") as caught:
        clue.CLUE(backed, **SMALL)
    assert caught.value.errno == errno.ENOSPC


def test_map_keeps_what_is_written(scratch):
    matrix = sp.random(70, 30, 0.2, format="csr", dtype=np.float32, random_state=0)
    matrix.data[::7] = 0
    found = disk.mapped(sparse.row_blocks(matrix), 30)
    assert disk.is_mapped(found.data) and disk.is_mapped(found.indices) and not disk.is_mapped(matrix.data)
    assert found.nnz == np.count_nonzero(matrix.data) and np.array_equal(found.toarray(), matrix.toarray())
    longer = disk.as_type(found.indices, np.int64)
    assert disk.is_mapped(longer) and longer.dtype == np.int64 and np.array_equal(longer, found.indices)
    nothing = disk.mapped([sp.csr_matrix((3, 30), dtype=np.float32)], 30)
    assert nothing.shape == (3, 30) and nothing.nnz == 0
