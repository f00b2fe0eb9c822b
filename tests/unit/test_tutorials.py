"""Tutorials run, and their pages show the code that ran."""

import re

import anndata as ad
import h5py
import numpy as np
import pytest
import scanpy as sc

from clue.simulate import simulate

LARGEST = 400_000
"""Limit on the bytes of a tutorial with its pictures."""


@pytest.fixture(scope="module")
def program(document_programs):
    return document_programs("tutorials.py")


@pytest.fixture(scope="module")
def folder(project):
    return project / "docs" / "tutorials"


@pytest.fixture(scope="module")
def source(folder):
    return folder / "own_data.py"


def shape(page: str) -> list[str]:
    """Return the parts of a page: the starts of code blocks, output blocks and pictures."""
    return re.findall(r"^(?:```\w+|!\[[^]]+\])", page, re.MULTILINE)


def test_every_page_shows_the_cells_of_its_source(program, folder):
    sources = sorted(folder.glob("*.py"))
    assert {path.stem for path in sources} == {path.stem for path in folder.glob("*.md")} != set()
    for path in sources:
        page, place = path.with_suffix(".md").read_text(), 0
        for kind, body in program.cells(path.read_text()):
            block = f"```python\n{body}\n```" if kind == "code" else body
            assert block in page[place:], f"{path.name}: run `make tutorials`; changed:\n{block}"
            place = page.index(block, place) + len(block)


def test_tutorial_is_small(folder):
    for path in folder.glob("*.md"):
        files = [path, *folder.glob(f"{path.stem}-*.png")]
        assert len(files) > 1 and sum(file.stat().st_size for file in files) < LARGEST
        for picture in re.findall(r"\]\(([\w-]+\.png)\)", path.read_text()):
            assert (folder / picture).is_file()


def shortened(text: str, smaller: dict[str, str]) -> str:
    """Return a tutorial with smaller numbers."""
    for whole, part in smaller.items():
        assert whole in text
        text = text.replace(whole, part)
    return text


@pytest.mark.slow
def test_mosaic_runs_on_few_cells(program, folder, tmp_path):
    text = (folder / "mosaic.py").read_text()
    smaller = {"3600": "360", "max_steps=1000": "max_steps=3", "1000": "80", "3000": "120", "60}": "20}"}
    (tmp_path / "mosaic.py").write_text(shortened(text, smaller))
    blocks = list(program.run(tmp_path / "mosaic.py"))
    assert shape("\n\n".join(blocks)) == shape((folder / "mosaic.md").read_text())


@pytest.mark.slow
def test_own_data_runs_on_few_cells(program, source, tmp_path, monkeypatch):
    data = simulate(300, {"rna": 80, "adt": 20}, n_types=4, n_donors=8, seed=0)
    cells = ad.concat(data.mod, axis="var", merge="same")
    cells.obs.columns = ["Batch", "Donor", "mergedcelltype"]
    cells.var["feature_types"] = ["Gene Expression"] * 80 + ["Antibody Capture"] * 20
    (tmp_path / "data" / "raw" / "pbmc_cite").mkdir(parents=True)
    cells.write_h5ad(tmp_path / "data" / "raw" / "pbmc_cite" / "liu_demo.h5ad")
    (tmp_path / "data" / "raw" / "pbmc_multiome").mkdir()
    for file, adata in zip(("W1", "W2"), simulate(200, {"rna": 80, "atac": 120}, seed=0).mod.values(), strict=True):
        np.save(tmp_path / "data" / "raw" / "pbmc_multiome" / f"{file}.npy", adata.X.toarray())
    text = source.read_text()
    smaller = {"n=6000": "n=300", "max_steps=1000": "max_steps=3", "max_steps=300": "max_steps=3"}
    smaller |= {'"rna": 2000, "atac": 4000': '"rna": 60, "atac": 100'}
    (tmp_path / source.name).write_text(shortened(text, smaller))
    monkeypatch.chdir(tmp_path)
    blocks = list(program.run(tmp_path / source.name))
    assert shape("\n\n".join(blocks)) == shape(source.with_suffix(".md").read_text())
    assert "```text\nTrue\n```" in blocks, "the model that was saved embeds as before"
    assert any("equal names are one cell" in block for block in blocks if block.startswith("```text"))


def test_cell_ranger_line_reads_its_file(source, tmp_path, monkeypatch):
    text = source.read_text()
    line = re.search(r"^# from Cell Ranger:\n# (.*)$", text, re.MULTILINE)[1]
    parts = [re.search(rf"^{name} = {{.*?}}$", text, re.MULTILINE | re.DOTALL)[0] for name in ("feature_types", "data")]
    monkeypatch.chdir(tmp_path)
    with h5py.File("filtered_feature_bc_matrix.h5", "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array([b"AAAC-1", b"AAAG-1", b"AAAT-1"])
        matrix["data"], matrix["indices"] = np.array([3, 1, 2], np.int32), np.array([0, 1, 0])
        matrix["indptr"], matrix["shape"] = np.array([0, 1, 2, 3]), np.array([2, 3], np.int32)
        features = matrix.create_group("features")
        for name, values in {"id": [b"g1", b"p1"], "name": [b"CD3E", b"CD3"], "genome": [b"GRCh38", b""]}.items():
            features[name] = np.array(values)
        features["feature_type"] = np.array([b"Gene Expression", b"Antibody Capture"])
    names = {"sc": sc}
    exec("\n".join([line, *parts]), names)
    assert names["data"]["rna"].X.sum() == 5 and names["data"]["adt"].X.sum() == 1


def test_failing_cell_is_named(program, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 1\nprint(x)\n\n# %%\nx.missing\n")
    blocks = program.run(path)
    assert [next(blocks) for _ in range(3)] == ["# Title", "```python\nx = 1\nprint(x)\n```", "```text\n1\n```"]
    with pytest.raises(Exception, match=r"broken.py: cell 3: AttributeError"):
        list(blocks)
