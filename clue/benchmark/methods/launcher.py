"""The processes that run one method together, as ``scripts/launch.sh`` starts them under srun or torchrun.

A method that trains under `torch.distributed`, as CLUE does, finds it initialised. A process that runs alone, the
default, asks for nothing: neither the environment nor torch.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from clue.benchmark.errors import BenchmarkError

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
"""The variables by which each launcher tells a process its rank, the number of ranks, and the rank on its machine."""


@dataclass(frozen=True)
class Processes:
    """One of the processes, and what it does with the others.

    Attributes
    ----------
    n
        How many there are.
    rank
        Which one this is; the first writes the files.
    local_rank
        Which one this is on its machine; it takes the GPU of that number.
    """

    n: int = 1
    rank: int = 0
    local_rank: int = 0

    def join(self, device: str) -> None:
        """Initialise `torch.distributed` and choose this process's GPU; the address of the first is in MASTER_ADDR."""
        if self.n == 1:
            return
        import torch
        import torch.distributed as dist

        if device == "cuda":
            # A site may show each process its own GPU only, or all of a machine's to each.
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=self.rank, world_size=self.n)

    def gather(self, value: Any) -> list[Any]:
        """Return what each process gives, once all have given it."""
        values = [value]
        if self.n > 1:
            import torch.distributed as dist

            values = [None] * self.n
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Let the first process alone print: progress bars of several tear each other's lines in a common log."""
        if self.rank == 0:
            yield
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield

    def leave(self) -> None:
        """End what `join` has begun."""
        if self.n > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def processes(n: int) -> Processes:
    """Return this process's place among `n`.

    Raises
    ------
    BenchmarkError
        If a launcher has started another number of them, or none has.
    """
    if n == 1:
        return Processes()
    for launcher, names in LAUNCHERS.items():
        if all(name in os.environ for name in names):
            rank, started, local_rank = (int(os.environ[name]) for name in names)
            if started != n:
                raise BenchmarkError(f"resources: tasks: {n} are asked for but {launcher} has started {started}")
            return Processes(n, rank, local_rank)
    raise BenchmarkError(f"resources: tasks: {n} are asked for; start them by scripts/launch.sh")


def host() -> str:
    """Return the name of this machine, as Slurm calls it where it runs the process."""
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
