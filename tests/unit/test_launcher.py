"""Several processes of one method: they find each other, one writes the files, a wrong number is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_methods
from test_methods import command_line

from clue.benchmark.contracts import read_embedding
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods.launcher import LAUNCHERS, Processes, processes

ROOT = Path(__file__).parents[2]
folder = test_methods.folder
PROGRAM = """
import sys, numpy as np, torch, torch.distributed as dist
from clue.benchmark.methods import run_method

def embed(task, params, seed):
    print("progress of", dist.get_rank(), file=sys.stderr)
    total = torch.tensor(float(dist.get_rank() + 1))
    if params.get("fail") == dist.get_rank():
        raise ValueError("bad luck")
    dist.all_reduce(total)
    return {name: np.full((cells.n_obs, 2), float(total)) for name, cells in task.test.items()}

run_method(embed)
"""


def run_two(folder, params):
    """Run the program as two processes on this machine, as a rule does where there is no Slurm."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [ROOT / "scripts/launch.sh", "2", "1", "1", "0", "python", "-P", program]
    bin_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = {**kept, "PATH": bin_path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*map(str, command), *command_line(folder, params=json.dumps(params))]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


def test_two_processes_make_one_embedding(folder):
    done = run_two(folder, {})
    assert done.returncode == 0, done.stderr
    # 1 + 2: each has seen the other's number
    assert np.all(read_embedding(folder / "out/embedding.h5ad").X == 3)
    report = json.loads((folder / "out/run.json").read_text())
    assert report["tasks"] == 2 and len(report["hosts"]) == 2
    assert not list((folder / "out").glob("*.tmp*"))
    assert "progress of 0" in done.stderr and "progress of 1" not in done.stderr


def test_first_reason_is_kept(folder):
    done = run_two(folder, {"fail": 1})
    assert done.returncode != 0 and "bad luck" in done.stderr
    assert json.loads((folder / "out/failure.json").read_text()) == {"error": "ValueError: bad luck"}
    assert not (folder / "out/embedding.h5ad").exists()


def test_one_process_does_not_look_at_the_environment(monkeypatch):
    """In an allocation of several tasks, as of `salloc --ntasks=4`, a method that asks for none runs alone."""
    for names in LAUNCHERS.values():
        for name, value in zip(names, ("1", "4", "1"), strict=True):
            monkeypatch.setenv(name, value)
    assert processes(1) == Processes(1, 0, 0)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_says_which_process_this_is(monkeypatch, launcher):
    for names in LAUNCHERS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(BenchmarkError, match="tasks: 4 are asked for; start them by"):
        processes(4)
    for name, value in zip(LAUNCHERS[launcher], ("3", "4", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert processes(4) == Processes(4, 3, 1)
    with pytest.raises(BenchmarkError, match=f"tasks: 2 are asked for but {launcher} has started 4"):
        processes(2)
