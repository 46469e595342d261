"""Several processes that train one network: who does what of a batch, and what they agree on.

Where torch.distributed is initialised, every rank augments the whole batch (mixing needs all of
it), passes its own part through the network, and sums gradients with the others; otherwise there is
one rank, which does everything. W ranks train as one process does that accumulates W parts, up to
the order of sums, with two exceptions. Running statistics of batch norm are means over ranks, taken
when an epoch ends; on CUDA networks get SyncBatchNorm, which normalises by the whole batch at once.
What layers draw, dropout for example, is drawn anew for each rank.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Part(NamedTuple):
    """Some rows of a batch, and the fraction of its images that they are; 0 where another rank
    has these rows too and answers for them."""

    rows: slice
    share: float


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if _together() else 0


def parts(count: int, accumulate: int) -> list[Part]:
    """The parts of a batch of `count` images, in order, in which all ranks together train on it.

    Of at least two images wherever there are two, since batch norm cannot learn from one.
    """
    size = world_size()
    rounds = min(accumulate, max(count // (2 * size), 1))
    pieces = torch.arange(count).tensor_split(min(rounds * size, max(count // 2, 1)))
    return [Part(slice(int(p[0]), int(p[-1]) + 1), len(p) / count) for p in pieces]


def own_parts(count: int, accumulate: int) -> list[Part]:
    """Those of `parts` that are this rank's. All ranks have as many: where a last batch has too few
    images for all, some pass the first part along, since the others wait for them."""
    everything = parts(count, accumulate)
    return everything[rank() :: world_size()] or [Part(everything[0].rows, 0.0)]


def summed(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over ranks, in place."""
    if _together():
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives every rank the sum of all gradients; one message, whatever the number of tensors."""
    if not _together():
        return
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    vector_to_parameters(summed(parameters_to_vector(gradients)), gradients)


def gathered(values: list[tuple[Part, Tensor]], count: int) -> Tensor:
    """The values (count, ...) of a whole batch from those (n, ...) of this rank's parts."""
    if not _together():
        return torch.cat([value for _, value in values])
    first = values[0][1]
    whole = first.new_zeros(count, *first.shape[1:])
    for part, value in values:
        if part.share > 0:
            whole[part.rows] = value
    return summed(whole)


@torch.no_grad()
def agree(*networks: nn.Module) -> None:
    """Gives every rank the mean of all floating-point buffers, such as statistics of batch norm."""
    for network in networks if _together() else ():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                summed(buffer).div_(world_size())


@torch.no_grad()
def start_alike(network: nn.Module) -> nn.Module:
    """`network` with the first rank's parameters and buffers on all, ready for all of them."""
    if not _together():
        return network
    if next(network.parameters()).is_cuda:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for tensor in (*network.parameters(), *network.buffers()):
        dist.broadcast(tensor, src=0)
    return network


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
