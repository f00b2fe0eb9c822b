"""Training steps as CUDA graphs: each shape of mini-batch is recorded once, then replayed by a single launch.

A step of CLUE is about a thousand small kernels. Launching them one by one takes the processor several times as long
as running them takes the GPU.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from clue.batches import Draw, send

_MOST = 16
"""Most graphs to keep. Mini-batches of further shapes run kernel by kernel. So do mini-batches with unpaired cells,
whose shapes rarely repeat."""

_WARM_UP = 2
"""Steps of each shape that run kernel by kernel first: libraries initialise themselves, which cannot be recorded."""


class Graphs:
    """Call a function that runs on a GPU without waiting for it, or replay it if the shapes are known.

    Parameters
    ----------
    learn
        Function of a mini-batch's `Draw` and two scalars, each a tensor on the device or None. It changes tensors only
        on the device and in place, and returns nothing.
    device
        The GPU.
    """

    def __init__(self, learn: Callable[..., None], device: str):
        self.learn, self.device = learn, device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.met: dict[tuple, int] = {}
        self.graphs: dict[tuple, tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]] = {}

    def __call__(self, draw: Draw, *scalars: float | None) -> None:
        """Run the function, or replay it."""
        given = [*draw.rows.values(), *(torch.tensor(value) for value in scalars if value is not None)]
        key = draw.shape() + tuple(value is None for value in scalars)
        if key in self.graphs:
            graph, inputs = self.graphs[key]
            for to, value in zip(inputs, given, strict=True):
                to.copy_(value.pin_memory(), non_blocking=True)
            graph.replay()
            return
        inputs = [send(value, self.device) for value in given]
        on_device = replace(draw, rows=dict(zip(draw.rows, inputs, strict=False)))
        rest = iter(inputs[len(draw.rows) :])
        arguments = (on_device, *(None if value is None else next(rest) for value in scalars))
        self.met[key] = self.met.get(key, 0) + 1
        if self.met[key] <= _WARM_UP or len(self.graphs) == _MOST:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.learn(*arguments)
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            self.learn(*arguments)
        self.graphs[key] = graph, inputs
        graph.replay()
