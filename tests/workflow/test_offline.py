"""Raw files are downloaded once, ahead of everything else, and no later job needs the network."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A server for a folder, and the folder."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, tmp_path / "served"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def project(fresh, server, monkeypatch):
    """A project with a data set of two files and two sources, the first of which cannot be used."""
    web, folder = server
    rng = np.random.default_rng(0)
    for name in ("W1.npy", "W2.npy"):
        np.save(folder / name, rng.poisson(1, size=(120, 30)).astype(np.float32))
    fresh.environment["NO_PROXY"] = "127.0.0.1"
    files = {"W1.npy": {}, "W2.npy": {}}
    sources = [
        {"kind": "files", "name": "mine", "folder": "none", "files": ["W1.npy", "W2.npy"]},
        {"kind": "http", "name": "web", "base": f"http://127.0.0.1:{web.server_port}/", "files": files},
    ]
    spec = {
        "label": "Arrays",
        "modalities": ["rna", "atac"],
        "sources": sources,
        "prepare": {"kind": "npy", "files": {"rna": "W1.npy", "atac": "W2.npy"}},
        "splits": {"random20": {"kind": "random", "fraction": 0.2, "seed": 0}},
    }
    fresh.write("config/datasets/arrays.yaml", spec)
    fresh.configure(datasets=["arrays"], methods=["random"], max_cells=None)
    return fresh


def test_download_first_then_no_network(project, server):
    status, output = project.snakemake("downloaded")
    assert status == 0, output
    manifest = project.path("data/raw/arrays/source.json")
    assert json.loads(manifest.read_text())["source"] == "web"
    log = project.path("logs/download/arrays.log").read_text()
    assert (
        "mine cannot be used: none/W1.npy: no such file" in log
        and "W1.npy: 14,528 bytes, sha256" in log
        and "\r" not in log
    )
    tracked = project.path("config/datasets/SHA256SUMS")
    assert tracked.read_text() == "", "a run changes no file of the project"
    assert project.call("scripts/pin.py")[0] == 0 and len(tracked.read_text().splitlines()) == 2

    server[0].shutdown()
    server[0].server_close()
    before = manifest.stat().st_mtime_ns
    status, output = project.snakemake("prepared")
    assert status == 0, output
    assert manifest.stat().st_mtime_ns == before

    # Neither pinned checksums nor another mirror make anything run again.
    project.configure(datasets=["arrays"], methods=["random"], max_cells=None, data_mirror="file:///nowhere")
    assert {rule for rule in project.planned_rules() if rule.startswith(("download", "prepare"))} == set()

    # An additional source means another download; the files are there and correct, so it needs no network.
    spec = yaml.safe_load(project.path("config/datasets/arrays.yaml").read_text())
    project.change("config/datasets/arrays.yaml", sources=[*spec["sources"], spec["sources"][1] | {"name": "other"}])
    status, output = project.snakemake("downloaded")
    assert status == 0, output
    assert "all 2 files are present and correct" in project.path("logs/download/arrays.log").read_text()


def test_mirror_from_the_configuration(project, server):
    mirror = project.path("scratch")
    (mirror / "arrays").mkdir(parents=True)
    for file in server[1].glob("*.npy"):
        file.rename(mirror / "arrays" / file.name)
    project.configure(datasets=["arrays"], methods=["random"], max_cells=None, data_mirror=mirror.as_uri())
    status, output = project.snakemake("prepared")
    assert status == 0, output
    assert project.path("data/raw/arrays/W1.npy").is_symlink()


def test_no_usable_source_is_one_line_in_the_log(project, server):
    for file in server[1].glob("*.npy"):
        file.unlink()
    status, output = project.call(*project.run_command, "--download")
    assert status == 1 and output.endswith(
        "error: some files could not be downloaded; see logs/download, and run again\n"
    )
    assert not project.path("data/raw/arrays/source.json").exists()
    [line] = [line for line in project.path("logs/download/arrays.log").read_text().splitlines() if "error: " in line]
    assert line.startswith("error: arrays: none of the 2 sources can be used: none/W1.npy: no such file")
    assert "the server answers 404 Not Found" in line
