"""Downloads over HTTP against a real server with faults: what the user sees, and what is left behind."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest
from faulty_web import Web, left, page, sha256, stall, status, trickle, truncate
from helpers import one_line_error, wait_until

from clue.benchmark.config import ConfigError, load
from clue.benchmark.data import transfer as module
from clue.benchmark.data.download import SUMS, download, read_sums
from clue.benchmark.data.sources import DownloadError, as_downloaded
from clue.benchmark.data.transfer import LocalError, Patience

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
FILE = "counts.bin"
HASTE = Patience(connect=5, stalled=20, attempts=3, pause=0.01)
STALLED = Patience(connect=5, stalled=1, attempts=3, pause=0.01)
"""Only for tests of stalls: a busy machine stalls too."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def web():
    server = Web()
    server.files[FILE] = CONTENT
    yield server
    server.close()


@pytest.fixture
def web2():
    server = Web()
    yield server
    server.close()


@pytest.fixture
def folder(workplace):
    """The folder of the data set `tiny`, in an empty project that is the working directory."""
    return workplace / "data" / "raw" / "tiny"


def source(web, files=(FILE,), **options):
    facts = files if isinstance(files, dict) else {file: {} for file in files}
    return {"kind": "http", "base": getattr(web, "url", web), "files": facts} | options


def get(folder, *sources, **options):
    """Download the data set `tiny`."""
    download("tiny", {"sources": list(sources)}, folder, **{"patience": HASTE} | options)


def fails(folder, *sources, error=DownloadError, **options):
    """Return the one-line error of a failing download."""
    return one_line_error(get, folder, *sources, error=error, **options)


def recorded(folder):
    """Return the checksums recorded by downloads, by file."""
    return read_sums(folder / SUMS)


PART = [f".{FILE}.part", f".{FILE}.part.headers"]


def is_complete(folder, content=CONTENT):
    return set(left(folder)) - {SUMS} == {FILE, "source.json"} and (folder / FILE).read_bytes() == content


# ---- without faults ------------------------------------------------------------------------------


def test_file_with_its_manifest_and_its_checksum(web, folder):
    get(folder, source(web, name="here"))
    assert is_complete(folder)
    manifest = json.loads((folder / "source.json").read_text())
    assert (manifest["source"], manifest["from"]) == ("here", web.url)
    [entry] = manifest["files"]
    assert (entry["file"], entry["size"], entry["sha256"]) == (FILE, len(CONTENT), sha256(CONTENT))
    assert subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder).returncode == 0


def test_complete_file_is_not_requested_even_without_its_manifest(web, folder):
    get(folder, source(web))
    before = (folder / "source.json").read_bytes()
    (folder / "source.json").unlink()  # Snakemake removes a rule's output before it runs the rule again
    web.requests.clear()
    get(folder, source(web))
    assert web.requests == [] and (folder / "source.json").read_bytes() == before


@pytest.mark.parametrize("damaged", ["", "half a lin", f"{'0' * 64}  {FILE}\n"])
def test_file_whose_recorded_checksum_is_damaged_is_downloaded_again(web, folder, damaged):
    get(folder, source(web))
    (folder / "source.json").unlink()
    (folder / SUMS).write_text(damaged)
    web.requests.clear()
    get(folder, source(web))
    assert web.requests and is_complete(folder) and recorded(folder) == {FILE: sha256(CONTENT)}


def test_progress_is_written_as_lines_in_a_log(web, folder, capsys):
    web.faults["GET"] = [trickle(web, 10_000, 0.05)]
    get(folder, source(web), patience=Patience(report=0.5))
    output = capsys.readouterr().out
    assert re.search(rf"^{FILE}: [0-9,]+ of 300000 bytes$", output, flags=re.MULTILINE) and "\r" not in output


def test_compressed_file_stays_compressed(web, folder):
    web.files["a.txt.gz"] = gzip.compress(b"genes")
    web.headers = {"Content-Encoding": "gzip"}  # as some servers do for .gz files
    get(folder, source(web, ["a.txt.gz"]))
    assert (folder / "a.txt.gz").read_bytes() == web.files["a.txt.gz"]


@pytest.mark.parametrize("path", ["sub/x?acc=1&file=a", "a b;touch hacked/$(touch hacked)/{x,y}[1-2]"])
def test_address_may_have_a_query_and_is_taken_literally(web, folder, path):
    web.files[quote(path, safe=";$()/{},[]?=&")] = CONTENT
    get(folder, source(web, {FILE: {"path": path}}))
    assert is_complete(folder) and not os.path.exists("hacked")


# ---- faults of the connection and of the server --------------------------------------------------


def change(web, n_bytes):
    """Break off, and serve another file the next time."""

    def fault(handler, old):
        truncate(web, n_bytes)(handler, old)
        web.files[FILE] = OTHER

    return fault


RESUMED = [None, "bytes=100000-"]


@pytest.mark.parametrize(
    ("faults", "server", "asked", "content", "printed"),
    [
        (lambda web: {"GET": [truncate(web, 100_000)]}, {}, RESUMED, CONTENT, "transfer closed"),
        (lambda web: {"GET": [stall(web, 100_000)]}, {}, RESUMED, CONTENT, "the last 1 seconds; trying again in"),
        (lambda web: {"GET": [status(503), status(429)]}, {}, [None] * 3, CONTENT, "429 Too Many Requests; trying"),
        (lambda web: {"HEAD": [status(503)]}, {}, [None], CONTENT, ""),
        (lambda web: {"HEAD": [status(405)]}, {}, [None], CONTENT, ""),
        (lambda web: {"GET": [truncate(web, 100_000)]}, {"ranges": False}, [*RESUMED, None], CONTENT, "starting anew"),
        (lambda web: {"GET": [change(web, 100_000)]}, {}, [*RESUMED, None], OTHER, "starting anew"),
        (lambda web: {"GET": [change(web, 100_000)]}, {"validators": False}, [None, None], OTHER, "transfer closed"),
    ],
    ids=["truncated", "stalled", "busy", "busy at first", "no HEAD", "no ranges", "changed", "changed, no version"],
)
def test_temporary_faults(web, folder, faults, server, asked, content, printed, capsys):
    web.faults |= faults(web)
    vars(web).update(server)
    start = time.monotonic()
    get(folder, source(web), patience=STALLED if "seconds" in printed else HASTE)
    assert time.monotonic() - start < 25, "a stalled server would have sent nothing for 30 s"
    assert is_complete(folder, content) and web.of("GET") == asked
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        ([status(404)], "the server answers 404 Not Found; correct the address in the YAML of the data set, or add a"),
        ([status(503)] * 3, "the server answers 503 Service Unavailable (3 attempts); check the network and run again"),
        ([page()], "a web page was sent instead of the file; open the address in a browser"),
        ([page("application/octet-stream")], "a web page was sent instead of the file; open the address in a browser"),
        ([status(301, Location=f"/{FILE}")] * 100, "redirects followed; correct the address"),
        ([status(302, Location="file:///etc/hostname")], 'Protocol "file" not supported'),
    ],
    ids=["absent", "busy", "page", "page of another kind", "redirects without end", "redirect to this machine"],
)
def test_permanent_faults_are_one_line_and_leave_nothing(web, folder, faults, line):
    web.faults["GET"] = faults
    message = fails(folder, source(web))
    assert message.startswith(f"{web.url}{FILE}: ") and line in message and left(folder) == []


@pytest.mark.parametrize("base", ["http://data.invalid/", "http://127.0.0.1:9/"])
def test_unreachable_server(folder, base):
    message = fails(folder, source(base))
    assert "counts.bin: " in message and "(3 attempts); check the network" in message and len(message) < 200
    assert message.count("(") == message.count(")") and left(folder) == []


def test_empty_file_is_refused_and_nothing_recorded(web, folder):
    web.files[FILE] = b""
    assert f"{FILE}: is empty; the source has changed the file, or it was damaged" in fails(folder, source(web))
    assert left(folder) == []
    web.files[FILE] = CONTENT
    get(folder, source(web))
    assert is_complete(folder), "a good file is accepted"


KEPT = r"check the network and run again; the 100,000 bytes that have arrived are kept"


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        (lambda web: [truncate(web, n) for n in (100_000, 0, 0)], rf"transfer closed with .* \(3 attempts\); {KEPT}"),
        (lambda web: [truncate(web, 100_000), page()], "a web page was sent instead of the file; .*"),
    ],
)
def test_partial_file_is_kept_and_the_next_run_resumes(web, folder, faults, line):
    web.faults["GET"] = faults(web)
    assert re.fullmatch(f"{web.url}{FILE}: {line}", fails(folder, source(web)))
    assert left(folder) == PART
    web.requests.clear()
    get(folder, source(web))
    assert is_complete(folder) and web.of("GET") == ["bytes=100000-"]


def test_download_goes_on_as_long_as_it_makes_progress(web, folder, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS", 20_000)
    web.faults["GET"] = [truncate(web, 30_000) for _ in range(9)]
    get(folder, source(web))
    assert is_complete(folder) and len(web.of("GET")) == 10 > HASTE.attempts


def test_redirects_are_followed(web, web2, folder):
    web2.files[f"moved/{FILE}"] = CONTENT
    to = status(302, Location=f"{web2.url}moved/{FILE}")
    web.faults = {"HEAD": [to], "GET": [to]}
    get(folder, source(web))
    assert is_complete(folder)


def test_server_that_cannot_resume_and_breaks_off_is_given_up(web, folder, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS", 1000)
    web.ranges = False
    web.faults["GET"] = [truncate(web, 100_000) for _ in range(50)]
    assert "(3 attempts)" in fails(folder, source(web))
    assert len(web.of("GET")) == 3


def test_partial_file_of_another_version_is_not_resumed(web, web2, folder):
    web.faults["GET"] = [truncate(web, 100_000)] + [status(503)] * 3
    fails(folder, source(web))
    web2.files[FILE] = OTHER
    get(folder, source(web2))
    assert is_complete(folder, OTHER) and web2.of("GET") == ["bytes=100000-", None]


# ---- checksums and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"sha256": "0" * 64}, f"sha256 is {sha256(CONTENT)}, expected {'0' * 64}"),
        ({"md5": "0" * 32}, f"md5 is {hashlib.md5(CONTENT).hexdigest()}, expected {'0' * 32}"),
        ({"size": 299_999}, "has 300,000 bytes, expected 299,999"),
    ],
)
def test_file_that_differs_from_the_yaml_is_refused(web, folder, facts, line):
    message = fails(folder, source(web, {FILE: facts}))
    assert message.startswith(f"{web.url}{FILE}: {line}") and "correct the YAML of the data set" in message
    assert left(folder) == []


def test_known_size_md5_and_sha256_are_enough(web, folder):
    facts = {"size": len(CONTENT), "md5": hashlib.md5(CONTENT).hexdigest(), "sha256": sha256(CONTENT)}
    get(folder, source(web, {FILE: facts}))
    assert is_complete(folder) and recorded(folder) == {}, "what the YAML states is not recorded"


@pytest.mark.parametrize("damage", [None, CONTENT[:-1] + b"x"], ids=["removed", "damaged"])
def test_file_without_a_known_checksum_is_replaced_by_the_current_one(web, folder, damage):
    get(folder, source(web))
    assert recorded(folder) == {FILE: sha256(CONTENT)}
    (folder / FILE).unlink()
    if damage:
        (folder / FILE).write_bytes(damage)
    web.files[FILE] = OTHER
    get(folder, source(web))
    assert is_complete(folder, OTHER) and recorded(folder) == {FILE: sha256(OTHER)}


# ---- this machine --------------------------------------------------------------------------------


def test_full_disk_keeps_partial_file_and_tries_no_other_source(web, web2, folder, tmp_path, monkeypatch):
    # The real curl, with a limit on file size: writes beyond it fail, as on a full disk.
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text(f'#!/bin/bash\ntrap "" XFSZ; ulimit -f 100; exec {shutil.which("curl")} "$@"\n')
    curl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    message = fails(folder, source(web), source(web2, name="other"), error=LocalError)
    assert re.search(r"\.counts\.bin\.part: cannot be written \(.+\); make room and run again", message)
    assert left(folder) == PART and web2.requests == []
    n_bytes = (folder / PART[0]).stat().st_size
    curl.unlink()
    get(folder, source(web))
    assert 0 < n_bytes <= 102_400 and is_complete(folder) and web.of("GET")[-1] == f"bytes={n_bytes}-"


def test_no_curl_is_one_line(web, folder, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert fails(folder, source(web), error=LocalError).startswith("curl was not found on this machine; install it")


def test_folder_that_cannot_be_made_is_one_line(web, workplace):
    (workplace / "data").write_text("a file")
    message = fails(workplace / "data" / "raw" / "tiny", source(web), error=LocalError)
    assert "Not a directory; fix it and run again" in message


PROGRAM = """
import json, sys
from clue.benchmark.data.download import download
from clue.benchmark.data.transfer import Patience
download("tiny", json.loads(sys.argv[1]), sys.argv[2], patience=Patience(pause=0.01))
"""


def start(folder, spec, project):
    """Start a download in a separate process."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(spec), str(folder)]
    return subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(project)}, stdout=subprocess.PIPE, text=True)


def test_download_killed_midway_is_resumed(web, folder, project):
    """curl outlives the killed program; the lock lasts as long as curl does, so two never write one file."""
    web.faults["GET"] = [stall(web, 250_000, seconds=3)]
    process = start(folder, {"source": source(web)}, project)
    part = folder / PART[0]
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    get(folder, source(web))
    assert is_complete(folder) and web.of("GET") == [None, "bytes=250000-"]


def test_download_killed_before_renaming(web, folder):
    folder.mkdir(parents=True)
    (folder / PART[0]).write_bytes(CONTENT)
    (folder / PART[1]).write_text("HTTP/1.1 200 OK\r\nLast-Modified: Mon, 05 Jan 2026 10:00:00 GMT\r\n\r\n")
    get(folder, source(web, {FILE: {"sha256": sha256(CONTENT)}}))
    assert is_complete(folder) and len(web.of("GET")) == 1


def test_files_complete_before_an_interruption_are_not_downloaded_again(web, folder):
    web.files |= {"a.bin": CONTENT, "b.bin": OTHER}
    web.faults["GET"] = [lambda handler, content: web.serve(handler, content)] + [status(503)] * 3
    fails(folder, source(web, ["a.bin", "b.bin"]))
    assert left(folder) == [SUMS, "a.bin"] and list(recorded(folder)) == ["a.bin"]
    web.requests.clear()
    get(folder, source(web, ["a.bin", "b.bin"]))
    assert {path for _, path, _ in web.requests} == {"/b.bin"}


def test_two_processes_at_once(web, folder, project):
    second_waits = threading.Event()

    def hold(handler, content):
        second_waits.wait(60)
        web.serve(handler, content)

    web.faults["GET"] = [hold]
    first = start(folder, {"source": source(web)}, project)
    wait_until(lambda: web.of("GET"))
    second = start(folder, {"source": source(web)}, project)
    assert "another process is downloading it; waiting for it to finish" in second.stdout.readline()
    second_waits.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "all 1 files are present and correct" in outputs[1]
    assert len(web.of("GET")) == 1 and is_complete(folder)


# ---- mirrors and alternatives --------------------------------------------------------------------


def test_local_mirror_goes_first_and_is_linked(web, folder, workplace, monkeypatch):
    (workplace / "scratch" / "tiny").mkdir(parents=True)
    (workplace / "scratch" / "tiny" / FILE).write_bytes(CONTENT)
    monkeypatch.setenv("SCRATCH", str(workplace / "scratch"))
    get(folder, source(web, {FILE: {"path": "elsewhere/x", "sha256": sha256(CONTENT)}}), mirror="file://$SCRATCH")
    assert is_complete(folder) and (folder / FILE).is_symlink() and web.requests == []


def test_remote_mirror_goes_first_even_for_a_package(web, folder):
    web.files[f"m/tiny/{FILE}"] = CONTENT
    wheel = {"kind": "pypi", "package": "none", "version": "1", "sha256": "0" * 64}
    wheel |= {"members": [{"member": f"none/{FILE}", "file": FILE, "sha256": sha256(CONTENT)}]}
    get(folder, wheel, mirror=f"{web.url}m")
    assert is_complete(folder) and web.requests[0][1] == f"/m/tiny/{FILE}"


@pytest.mark.parametrize("fault", ["absent", "damaged"])
def test_mirror_with_a_missing_or_wrong_file_is_passed_over(web, folder, workplace, fault, capsys):
    mirror = workplace / "scratch"
    (mirror / "tiny").mkdir(parents=True)
    if fault == "damaged":
        (mirror / "tiny" / FILE).write_bytes(OTHER)
    get(folder, source(web, {FILE: {"sha256": sha256(CONTENT)}}), mirror=mirror.as_uri())
    assert is_complete(folder) and not (folder / FILE).is_symlink()
    output = capsys.readouterr().out
    assert f"scratch/tiny/{FILE}: {'no such file' if fault == 'absent' else 'sha256 is'}" in output


def test_second_source_is_used_if_the_first_is_down(web, web2, folder, capsys):
    web.close()
    web2.files["b.bin"] = CONTENT
    second = source(web2, ["b.bin"], name="second", prepare={"kind": "npy"}, expect={"n_cells": 5})
    spec = {"sources": [source(web, name="first"), second], "prepare": {"kind": "h5ad"}, "label": "Tiny"}
    download("tiny", spec, folder, patience=HASTE)
    assert left(folder) == [SUMS, "b.bin", "source.json"]
    assert "tiny: first cannot be used: " in capsys.readouterr().out
    used = as_downloaded(spec, folder)
    assert (used["source"], used["prepare"], used["expect"]) == (second, {"kind": "npy"}, {"n_cells": 5})
    assert used["files"] == {"b.bin": sha256(CONTENT)} and used["label"] == "Tiny" and "sources" not in used


@pytest.mark.parametrize("faults", [[], [truncate, status(404)]], ids=["lacks a file", "breaks off"])
def test_incomplete_source_leaves_nothing(web, web2, folder, faults):
    web.faults["GET"] = [fault(web, 100_000) if fault is truncate else fault for fault in faults]
    web2.files["b.bin"] = CONTENT
    files = [FILE] if faults else [FILE, "absent.bin"]
    get(folder, source(web, files, name="first"), source(web2, ["b.bin"], name="second"))
    assert len(web.of("GET")) == len(faults), "a missing file is noticed before gigabytes are downloaded"
    assert left(folder) == [SUMS, "b.bin", "source.json"]


def test_no_usable_source(web, web2, folder):
    web.close()
    message = fails(folder, source(web, name="first"), source(web2, name="second"))
    assert message.startswith("tiny: none of the 2 sources can be used: ")
    assert f"{web.url}{FILE}: Failed to connect" in message and f"{web2.url}{FILE}: the server answers 404" in message
    assert web2.of("HEAD") == [None] and web2.of("GET") == [], "no second attempt"


# ---- preparing what was downloaded ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "source.json").unlink(), "source.json: no such file; download the data set first"),
        (lambda folder: (folder / "source.json").write_text("{"), "source.json: cannot be read"),
        (lambda folder: (folder / "source.json").write_text("[]"), "source.json: cannot be read"),
        (lambda folder: (folder / FILE).unlink(), f"{FILE}: no such file; delete .*source.json and run again"),
        (lambda folder: (folder / FILE).write_bytes(b"x"), f"{FILE}: has changed in size since it was downloaded"),
        (lambda folder: (folder / "source.json").write_text('{"source": "old", "files": []}'), "names a source 'old'"),
    ],
)
def test_damaged_or_outdated_download_is_one_line(web, folder, damage, line):
    get(folder, source(web))
    damage(folder)
    with pytest.raises(DownloadError, match=line) as error:
        as_downloaded({"source": source(web)}, folder)
    assert "\n" not in str(error.value)


# ---- the YAML ------------------------------------------------------------------------------------

SPEC = {"label": "Tiny", "modalities": ["rna", "adt"], "splits": {"s": {"kind": "random", "fraction": 0.2, "seed": 0}}}
HTTP = {"kind": "http", "base": "https://data.invalid/", "files": {FILE: {}}}
WHEEL = {"kind": "pypi", "package": "a", "version": "1", "sha256": "0" * 64}
WHEEL |= {"members": [{"member": "x", "file": "../x", "sha256": "0" * 64}]}
NPY = {"kind": "npy", "files": {"rna": FILE}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prepare": NPY}, "'source' is a required property"),
        ({"source": HTTP, "sources": [HTTP], "prepare": NPY}, "source"),
        ({"sources": [HTTP, HTTP], "prepare": NPY}, "sources: more than one is named 'http'; give each its own `name`"),
        ({"sources": [HTTP | {"prepare": NPY}, HTTP | {"name": "b"}]}, "sources.1: 'prepare' is a required property"),
        ({"source": HTTP}, "source: 'prepare' is a required property"),
        ({"source": HTTP | {"base": "https://data.invalid"}, "prepare": NPY}, "source.base: 'https://data.invalid'"),
        ({"source": HTTP | {"file": {}}, "prepare": NPY}, "source: unknown key 'file'; did you mean 'files'"),
        ({"source": HTTP | {"files": {FILE: {"sha": ""}}}, "prepare": NPY}, f"source.files.{FILE}: unknown key 'sha'"),
        ({"source": HTTP | {"files": {"../x": {}}}, "prepare": NPY}, "source.files: '../x' does not fit"),
        ({"source": HTTP | {"files": {".x": {}}}, "prepare": NPY}, "source.files: '.x' does not fit"),
        ({"source": {"kind": "files", "folder": ".", "files": ["/x"]}, "prepare": NPY}, "source.files.0: '/x' does"),
        ({"source": HTTP, "prepare": NPY | {"files": {"rna": "none.npy"}}}, "prepare: source has no file 'none.npy'"),
        ({"source": WHEEL, "prepare": NPY}, "source.members.0.file: '../x' does not fit"),
    ],
)
def test_wrong_sources(workplace, add_dataset, changes, line):
    add_dataset("tiny", SPEC | changes)
    with pytest.raises(ConfigError) as error:
        load("datasets", "tiny")
    assert str(error.value).startswith("config/datasets/tiny.yaml: ") and line in str(error.value)


def test_single_source_may_have_its_own_preparation(workplace, add_dataset):
    add_dataset("tiny", SPEC | {"source": HTTP | {"prepare": NPY}})
    load("datasets", "tiny")
