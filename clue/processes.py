"""Communication between the processes of `torchrun` while they train one model."""

import torch
import torch.distributed as dist


class Processes:
    """The processes that train together: just one, without communication, if `torch.distributed` is not initialised."""

    def __init__(self, device: str):
        together = dist.is_available() and dist.is_initialized()
        self.device = device
        self.rank, self.n = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    def share(self, index: torch.Tensor) -> torch.Tensor:
        """Return this process's share of the cells of a mini-batch."""
        return index[self.rank :: self.n]

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Replace tensors by their means over processes, in one exchange."""
        if self.n == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.n).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Average gradients; a parameter that this process's share did not use has a gradient of zero."""
        if self.n == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.average(gradients)

    def largest(self, number: float) -> int:
        """Return the largest of the processes' numbers."""
        if self.n == 1:
            return int(number)
        numbers = torch.tensor(int(number), device=self.device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def from_first(self, value):
        """Return the first process's value, since all processes must take the same decisions."""
        values = [value]
        if self.n > 1:
            dist.broadcast_object_list(values, device=torch.device(self.device))
        return values[0]

    def gather(self, value) -> list:
        """Return the values of all processes."""
        values = [value]
        if self.n > 1:
            values = [None] * self.n
            dist.all_gather_object(values, value)
        return values
