"""Two processes that share mini-batches compute the gradients of one, and stay equal."""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import clue
from clue import network as clue_network
from clue.network import Objective
from clue.processes import Processes
from clue.simulate import simulate
from clue.train import Training, _Loop

N_PROCESSES = 2
OPTIONS = {"max_steps": 12, "warmup_steps": 4, "check_steps": 4, "batch_size": 32, "progress": False}
DEVICES = ["cpu", *[f"cuda:{i}" for i in range(min(torch.cuda.device_count(), 1))]]


def model_of(device, dropout):
    data = simulate(96, {"rna": 40, "adt": 12}, n_batches=2, seed=0)
    small = {"n_latent": 4, "encoder": (1, 16), "decoder": (1, 16), "discriminator": (1, 16), "n_components": 8}
    return clue.CLUE(data, batch_key="batch", dropout=dropout, device=device, **small)


def gradients_of_a_step(device):
    """Without dropout and noise, with normalisation as in evaluation, and weights that do not move."""
    model = model_of(device, dropout=0.0)
    loop = _Loop(model.network, model._cells(dict(model._data)), Objective(), Training(learning_rate=0.0), seed=0)
    # `eval` calls `train(False)`, so `train` may be disabled only afterwards
    model.network.eval()
    model.network.train = lambda mode=True: model.network
    clue_network._noise_like = lambda x, generator: torch.zeros_like(x)
    gradients = {}

    def kept(optimizer):
        def step():
            gradients.update({names[p]: p.grad.cpu().numpy().copy() for p in optimizer.param_groups[0]["params"]})

        return step

    names = {p: name for name, p in model.network.named_parameters()}
    for optimizer in (loop.discriminator_side, loop.generator_side):
        optimizer.step = kept(optimizer)
    loop._train_step(torch.arange(64))
    assert len(gradients) == len(names)
    return gradients


def join_group(rank, port):
    """Make this process one of two that train together."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=N_PROCESSES)


def train_to(path, model, folder):
    """Train, with checkpoints in the folder, and write the weights."""
    model.fit(checkpoints=folder / "checkpoints", checkpoint_seconds=0, **OPTIONS)
    np.savez(path, **{name: value.cpu().numpy() for name, value in model.network.state_dict().items()})


def in_a_process(rank, port, device, folder):
    join_group(rank, port)
    np.savez(folder / f"gradients_{rank}.npz", **gradients_of_a_step(device))
    clue_network._noise_like = torch_noise
    model = model_of(device, dropout=0.2)
    train_to(folder / f"weights_{rank}.npz", model, folder)
    train_to(folder / f"again_{rank}.npz", model_of(device, dropout=0.2), folder)
    try:
        model.fit(**OPTIONS | {"batch_size": 33})
    except ValueError as error:
        (folder / f"error_{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


torch_noise = clue_network._noise_like


def train_in_a_process(rank, port, device, folder, stops):
    """Train; if `stops`, hang after the first checkpoint, within a pass, until killed."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    join_group(rank, port)
    advance = _Loop.advance

    def once(loop):
        if loop.step:
            time.sleep(600)
        advance(loop)

    if stops:
        _Loop.advance = once
    train_to(folder / f"resumed_{rank}.npz", model_of(device, dropout=0.2), folder)
    dist.destroy_process_group()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module", params=DEVICES)
def folder(request, tmp_path_factory):
    """The files that two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(in_a_process, (free_port(), request.param, folder), nprocs=N_PROCESSES)
    (folder / "device.txt").write_text(request.param)
    return Path(folder)


def test_gradients_equal_those_of_one_process(folder, monkeypatch):
    monkeypatch.setattr(clue_network, "_noise_like", torch_noise)
    expected = gradients_of_a_step("cpu")
    assert any(np.abs(gradient).max() > 1e-3 for gradient in expected.values())
    for rank in range(N_PROCESSES):
        found = np.load(folder / f"gradients_{rank}.npz")
        for name, gradient in expected.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("what", ["weights", "again"])
def test_processes_end_with_equal_weights_even_from_a_checkpoint(folder, what):
    first = np.load(folder / "weights_0.npz")
    for rank in range(N_PROCESSES):
        other = np.load(folder / f"{what}_{rank}.npz")
        for name in first:
            assert np.array_equal(first[name], other[name]), name


def test_killed_processes_resume_from_the_checkpoint(folder, tmp_path, capfd):
    device = (folder / "device.txt").read_text()
    running = mp.spawn(train_in_a_process, (free_port(), device, tmp_path, True), nprocs=N_PROCESSES, join=False)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("checkpoints/*.pt")):
        assert time.monotonic() < deadline and all(process.is_alive() for process in running.processes)
        time.sleep(0.1)
    for process in running.processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in running.processes:
        process.join()
    mp.spawn(train_in_a_process, (free_port(), device, tmp_path, False), nprocs=N_PROCESSES)
    assert "resuming at step" in capfd.readouterr().out
    expected = np.load(folder / "weights_0.npz")
    for rank in range(N_PROCESSES):
        resumed = np.load(tmp_path / f"resumed_{rank}.npz")
        assert all(np.array_equal(resumed[name], expected[name]) for name in expected)


def test_batch_that_cannot_be_divided_is_refused(folder):
    assert "2 processes cannot share batch_size 33 evenly" in (folder / "error_0.txt").read_text()


def test_single_process_needs_no_process_group():
    assert not dist.is_initialized()
    assert Processes("cpu").n == 1
