"""A method opens its own inputs and nothing that holds the pairing of the test cells."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clue.benchmark.config import Benchmark

ROOT = Path(__file__).parents[2]
METHODS = sorted(path.stem for path in (ROOT / "config" / "methods").glob("*.yaml"))
INPUTS = ["train.h5mu", "test_rna.h5ad", "test_atac.h5ad"]
SHORT = {"max_steps": 20, "warmup_steps": 5, "patience_steps": 10, "max_epochs": 2}
"""Settings that shorten any training, wherever they occur in the hyper-parameters."""
# With seccomp the kernel stops the process only at these calls, not at every one.
STRACE = ["strace", "--follow-forks", "--seccomp-bpf", "--trace=open,openat", "--string-limit=4096"]
RUN = {"run": "test", "datasets": ["simulated"], "seeds": [0], "budget": "test"}

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, which traces the opened files")


def works_here(method):
    """Return whether a method's program can run in this environment and on this data set."""
    spec = yaml.safe_load((ROOT / "config/methods" / f"{method}.yaml").read_text())
    supported = spec["modalities"] == "any" or ["rna", "atac"] in spec["modalities"]
    return supported and spec.get("env", "python") == "python" and "script" in spec


@pytest.mark.parametrize("method", list(filter(works_here, METHODS)))
def test_method_opens_no_file_with_the_pairing(finished_run, tmp_path, method):
    project = finished_run[0]
    task = project.path("results/test/simulated/random20")
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name in INPUTS:
        shutil.copy(task / name, folder / name)

    opened = files_opened(project, method, folder, tmp_path / "trace")
    assert {folder / name for name in INPUTS} <= opened
    ours = {path for path in opened if path.is_relative_to(folder) and not path.is_relative_to(folder / "out")}
    assert {path.name for path in ours if path.is_file()} == set(INPUTS)
    for sealed in ("results", "data"):
        assert not [path for path in opened if path.is_relative_to(project.path(sealed))]
    assert not [path for path in opened if path.name in ("solution.h5ad", "dataset.h5mu")]


def shortened(params):
    """Return hyper-parameters in which the values of `SHORT` replace those with the same keys."""
    short = {key: shortened(value) if isinstance(value, dict) else value for key, value in params.items()}
    return short | {key: value for key, value in SHORT.items() if key in params}


def files_opened(project, method, folder, trace):
    """Run a method's program in a folder under strace; return the paths that it opened."""
    benchmark = Benchmark(RUN | {"methods": [method]}, ROOT)
    params = shortened(benchmark.params(method, "default", ["rna", "atac"]))
    program = project.path("scripts/methods", benchmark.methods[method]["script"])
    command = [*STRACE, f"--output={trace}", sys.executable, "-P", str(program)]
    command += ["--train", INPUTS[0], "--tests", *INPUTS[1:], "--embedding", "out/embedding.h5ad"]
    command += f"--method {method} --variant default --seed 0 --device cpu --threads 1 --params".split()
    command.append(json.dumps(params))
    done = subprocess.run(command, cwd=folder, env=project.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "embedding.h5ad").exists()
    names = re.findall(r'open(?:at)?\((?:[^,"]+, )?"([^"]*)"[^=]*\) = \d', trace.read_text())
    return {Path(os.path.normpath(folder / name)) for name in names}


def test_trace_finds_a_method_that_cheats(finished_run, tmp_path):
    """A check of the check itself: a method that opens the solution is found."""
    project = finished_run[0]
    solution = project.path("results/test/simulated/random20/solution.h5ad")
    program = tmp_path / "cheat.py"
    program.write_text(f"open({str(solution)!r}, 'rb').read(1)\n")
    trace = tmp_path / "trace"
    subprocess.run([*STRACE, f"--output={trace}", sys.executable, program], check=True)
    assert str(solution) in trace.read_text()
