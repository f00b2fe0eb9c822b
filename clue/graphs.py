"""A training step as CUDA graphs: recorded once per shape of the mini-batch, then replayed by a single launch.

A step of CLUE is about a thousand small kernels. To launch them one by one takes the processor several times as long
as the GPU needs to run them.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from clue.batches import Draw, send

_MOST = 16
"""Most graphs to keep; mini-batches of further shapes run kernel by kernel, as do those of unpaired cells, whose shapes
rarely repeat."""

_WARM_UP = 2
"""Steps of a shape that run kernel by kernel first: libraries initialise themselves, which cannot be recorded."""


class Graphs:
    """Calls a function that works on a GPU without waiting for it, and replays it where it knows the shapes.

    Parameters
    ----------
    learn
        Takes a mini-batch's `Draw` and two scalars, each a tensor on the device or None. Everything it does to
        tensors happens on the device and in place, and it returns nothing.
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
        """Do what the function does."""
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
