"""What the machine lacks is reported in one line as a run starts; another workflow's settings change nothing."""

import os
import shutil

import pytest

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.running import machine

NO_SLURM = "no Slurm on this machine (no command sbatch)"
NO_GPU = "device: the configuration says cuda, but no GPU was found on this machine; set device: cpu"


@pytest.fixture
def bare(finished, tmp_path):
    """A finished project on a machine without Slurm or a GPU, whatever this one has."""
    finished.drop_figures()
    hidden = ("sbatch", "squeue", "sacct", "sinfo", "srun", "nvidia-smi")
    for folder in os.environ["PATH"].split(os.pathsep):
        for path in os.scandir(folder) if os.path.isdir(folder) else []:
            link = tmp_path / "bin" / path.name
            link.parent.mkdir(exist_ok=True)
            if path.name not in hidden and not link.is_symlink():
                link.symlink_to(path.path)
    finished.environment |= {"PATH": str(tmp_path / "bin"), "CUDA_VISIBLE_DEVICES": ""}
    return finished


def test_unusual_environment_works(unscored):
    """A configuration whose path has spaces, quotes and non-ASCII letters, in a locale that lacks these.

    Another workflow's profile changes nothing, and caches go elsewhere if the home folder is not writable.
    """
    path = unscored.path("it's my config") / "größe.yaml"
    path.parent.mkdir()
    unscored.path("config/test.yaml").rename(path)
    path.write_text(path.read_text() + "# größer\n", encoding="utf-8")
    unscored.change("config/datasets/simulated.yaml", label="Größe 细胞")
    unscored.path("other").mkdir()
    unscored.write("other/config.yaml", {"dry-run": True})
    unscored.environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "HOME": "/dev/null/home"}
    unscored.environment |= {"SNAKEMAKE_PROFILE": str(unscored.path("other"))}
    unscored.environment.pop("XDG_CACHE_HOME", None)
    status, output = unscored.call("scripts/run.py", "--config", "it's my config/größe.yaml", "--cores", "1")
    assert status == 0 and unscored.path("results/test/metrics.tsv").exists(), output
    assert "/dev/null/home/.cache: cannot be written" in output
    assert unscored.path(".snakemake/cache/snakemake").is_dir()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--cores", "0"], "--cores: with 0, nothing can run; give at least 1 (make run CORES=2)"),
        ([], "give --cores, to run on this machine, or --profile, to run on a cluster"),
    ],
)
def test_run_needs_cores_or_a_profile(fresh, words, line):
    assert fresh.call("scripts/run.py", "--config", "config/test.yaml", *words) == (1, f"error: {line}\n")


def test_no_slurm_is_one_line(bare, project):
    shutil.copytree(project / "profiles", bare.path("profiles"))
    bare.configure(methods=["clue/default"])
    status, output = bare.call("scripts/run.py", "--config", "config/test.yaml", "--profile", "profiles/slurm")
    assert status == 1 and output.startswith(f"error: {NO_SLURM}") and len(output.splitlines()) == 1
    words = ["--configfile", "config/test.yaml", "--profile", "profiles/slurm"]
    status, output = bare.call("-m", "snakemake", *words)
    assert status == 1 and output.count(NO_SLURM) == 1 and "Traceback" not in output, output


def test_missing_gpu_is_one_line_if_a_job_needs_it(bare):
    bare.configure(methods=["clue/default"], device="cuda")
    status, output = bare.run()
    assert status == 1 and output.startswith(f"error: {NO_GPU}") and len(output.splitlines()) == 1
    status, output = bare.snakemake()
    assert status == 1 and output.count(NO_GPU) == 1 and "Traceback" not in output, output
    assert not bare.path("results/test/simulated/random20/clue").exists()

    bare.configure(methods=["random"], device="cuda")
    status, output = bare.run()
    assert status == 0, output


def test_method_with_missing_requirements_is_unavailable(bare):
    bare.add_method("elsewhere")
    needs = {"program": ["sh", "no_such_program"], "python": ["yaml", "no_such_module"], "r": ["Seurat"]}
    bare.change("config/methods/elsewhere.yaml", requires=needs)
    bare.configure(methods=["elsewhere", "random"])
    status, output = bare.snakemake()
    assert status == 0, output
    row = bare.table("failures").set_index("method").loc["elsewhere"]
    reason = "no program no_such_program; no Python module no_such_module; no R with Seurat (Rscript on the path: "
    assert row["status"] == "unavailable" and row["reason"].startswith(reason) and row["log"] == ""
    # Other environments may have them: each job finds out.
    assert "elsewhere" not in bare.planned_rules()
    words = ["--configfile", "config/test.yaml", "--dry-run", "--quiet", "rules", "--executor", "slurm", "--jobs", "1"]
    assert "elsewhere" in bare.call("-m", "snakemake", *words)[1]


def test_gpu_is_found_in_either_way(monkeypatch):
    monkeypatch.setattr(machine, "_succeeds", lambda command, *options: command == "nvidia-smi")
    machine.require_gpu()
    monkeypatch.setattr(machine, "_succeeds", lambda command, *options: command != "nvidia-smi")
    machine.require_gpu()
    monkeypatch.setattr(machine, "_succeeds", lambda *command: False)
    with pytest.raises(BenchmarkError, match="no GPU was found"):
        machine.require_gpu()
