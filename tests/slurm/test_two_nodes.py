"""Methods of several tasks: srun starts their processes on the nodes, and they train as one."""

import json

import anndata as ad
import numpy as np
import psutil
import pytest
from slurm_project import RUN, SITE, slurm, wait_for
from test_faults import ends_well, resumed_at

BOTH = {"cpu": {"max_nodes": 1}, "gpu": {"max_nodes": 1, "max_gpu": 2}, "both": {"max_mem_mb": 20000}}
FOLDER = "results/test/simulated/random20/clue/default/seed-0"
TWO = {"tasks": 2, "nodes": 2, "mem_gb": 2, "runtime_min": 30}


@pytest.fixture
def pair(project):
    """A project whose CLUE asks for two processes on two nodes, and a site where one partition has both."""
    project.write("slurm-site.yaml", SITE | {"partitions": BOTH})
    project.change("config/methods/clue.yaml", resources=TWO)
    project.configure(**RUN | {"methods": ["clue/default"]})
    project.drop_figures()
    return project


def test_two_nodes_train_one_model(pair):
    """Two processes on one machine, started by torchrun, come to the same embedding."""
    ends_well(pair, pair.snakemake())
    report = json.loads(pair.path(FOLDER, "run.json").read_text())
    assert report["tasks"] == 2 and report["hosts"] == ["cpu1", "gpu1"]
    assert pair.log().count("0/6 [") == 1, "one progress bar, not one of each process"
    embedding = ad.read_h5ad(pair.path(FOLDER, "embedding.h5ad")).X
    assert len(embedding) and np.isfinite(embedding).all()

    pair.path(FOLDER, "embedding.h5ad").unlink()
    words = ["--configfile", "config/test.yaml", "--cores", "1", f"{FOLDER}/embedding.h5ad"]
    status, output = pair.call("-m", "snakemake", *words)
    assert status == 0, output
    again = json.loads(pair.path(FOLDER, "run.json").read_text())
    assert again["tasks"] == 2 and len(set(again["hosts"])) == 1 and again["hosts"][0] not in ("cpu1", "gpu1")
    assert np.array_equal(ad.read_h5ad(pair.path(FOLDER, "embedding.h5ad")).X, embedding)


def test_each_task_has_its_gpu(pair):
    see = "import os, pathlib; gpus = os.environ['CUDA_VISIBLE_DEVICES']"
    pair.add_method("seer", body=f"{see}; pathlib.Path('gpus-' + os.environ['SLURM_PROCID']).write_text(gpus)")
    pair.change("config/methods/seer.yaml", resources={"tasks": 2, "mem_gb": 2})
    pair.configure(methods=["seer"])
    process = pair.snakemake("--set-resources", "seer:gpu=2")
    assert process.wait(900) == 0, pair.output()
    report = json.loads(pair.path(FOLDER.replace("clue", "seer"), "run.json").read_text())
    assert report["hosts"] == ["gpu1", "gpu1"]
    # All GPUs of the job are shown to each task, which takes one by its rank on the node; or each sees its own.
    seen = [pair.path(f"gpus-{rank}").read_text() for rank in (0, 1)]
    assert seen in (["0,1", "0,1"], ["0", "1"]), seen


@pytest.mark.fault
def test_lost_process_ends_the_others_and_training_goes_on(pair):
    pair.train_long(steps=1000)
    pair.change("config/methods/clue.yaml", resources=TWO)
    process = pair.snakemake()
    first = pair.job("clue")
    pair.checkpoint()
    [second] = wait_for("the second process", lambda: ranks(pair, 1))
    second.kill()
    wait_for("its job to end", lambda: first not in slurm("squeue", "--noheader", "--format=%i").split())
    ends_well(pair, process)
    assert f"SLURM-job '{first}' failed" in pair.output()
    assert resumed_at(pair) > 0
    assert json.loads(pair.path(FOLDER, "run.json").read_text())["tasks"] == 2


def ranks(project, rank):
    """Return the running processes of CLUE that have a rank."""
    found = []
    for process in psutil.process_iter():
        try:
            words, environment = process.cmdline(), process.environ()
            if "--embedding" in words and words[0].endswith("python") and process.cwd() == str(project.folder):
                found += [process] if environment.get("SLURM_PROCID") == str(rank) else []
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
