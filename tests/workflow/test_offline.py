"""Raw files are downloaded once, ahead of everything else, and no later job needs the network."""

import io
import json

import numpy as np
import pytest
import yaml
from faulty_web import Web


@pytest.fixture
def web():
    """A server of two arrays."""
    server, rng = Web(), np.random.default_rng(0)
    for name in ("W1.npy", "W2.npy"):
        np.save(content := io.BytesIO(), rng.poisson(1, size=(120, 30)).astype(np.float32))
        server.files[name] = content.getvalue()
    yield server
    server.close()


@pytest.fixture
def project(fresh, web):
    """A project with a data set of two files and two sources, the first of which cannot be used."""
    fresh.environment["NO_PROXY"] = "127.0.0.1"
    sources = [
        {"kind": "files", "name": "mine", "folder": "none", "files": ["W1.npy", "W2.npy"]},
        {"kind": "http", "name": "web", "base": web.url, "files": {"W1.npy": {}, "W2.npy": {}}},
    ]
    spec = {"label": "Arrays", "modalities": ["rna", "atac"], "sources": sources}
    spec["prepare"] = {"kind": "npy", "files": {"rna": "W1.npy", "atac": "W2.npy"}}
    spec["splits"] = {"random20": {"kind": "random", "fraction": 0.2, "seed": 0}}
    fresh.write("config/datasets/arrays.yaml", spec)
    fresh.configure(datasets=["arrays"], methods=["random"], max_cells=None)
    return fresh


def test_download_first_then_no_network(project, web):
    status, output = project.snakemake("downloaded")
    assert status == 0, output
    manifest = project.path("data/raw/arrays/source.json")
    assert json.loads(manifest.read_text())["source"] == "web"
    log = project.path("logs/download/arrays.log").read_text()
    assert "mine cannot be used: none/W1.npy: no such file" in log
    assert "W1.npy: 14,528 bytes, sha256" in log and "\r" not in log
    assert len(project.path("data/raw/arrays/SHA256SUMS").read_text().splitlines()) == 2

    web.close()
    before = manifest.stat().st_mtime_ns
    status, output = project.snakemake("prepared")
    assert status == 0, output
    assert manifest.stat().st_mtime_ns == before

    # Another mirror makes nothing run again.
    project.configure(datasets=["arrays"], methods=["random"], max_cells=None, data_mirror="file:///nowhere")
    assert {rule for rule in project.planned_rules() if rule.startswith(("download", "prepare"))} == set()

    # An additional source means another download; the files are there and correct, so it needs no network.
    spec = yaml.safe_load(project.path("config/datasets/arrays.yaml").read_text())
    project.change("config/datasets/arrays.yaml", sources=[*spec["sources"], spec["sources"][1] | {"name": "other"}])
    status, output = project.snakemake("downloaded")
    assert status == 0, output
    assert "all 2 files are present and correct" in project.path("logs/download/arrays.log").read_text()


def test_mirror_from_the_configuration(project, web):
    mirror = project.path("scratch")
    (mirror / "arrays").mkdir(parents=True)
    for name, content in web.files.items():
        (mirror / "arrays" / name).write_bytes(content)
    web.files.clear()
    project.configure(datasets=["arrays"], methods=["random"], max_cells=None, data_mirror=mirror.as_uri())
    status, output = project.snakemake("prepared")
    assert status == 0, output
    assert project.path("data/raw/arrays/W1.npy").is_symlink()


def test_no_usable_source_is_one_line_in_the_log(project, web):
    web.files.clear()
    status, output = project.call(*project.run_command, "--download")
    line = "error: some files could not be downloaded; see logs/download, and run again\n"
    assert status == 1 and output.endswith(line)
    assert not project.path("data/raw/arrays/source.json").exists()
    [line] = [line for line in project.path("logs/download/arrays.log").read_text().splitlines() if "error: " in line]
    assert line.startswith("error: arrays: none of the 2 sources can be used: none/W1.npy: no such file")
    assert "the server answers 404 Not Found" in line
