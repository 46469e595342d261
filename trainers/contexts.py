"""How torch computes for a while: on one core, with draws of its own, or without learning."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from spaces import randomness


@contextmanager
def one_thread() -> Iterator[int]:
    """Computes on one core, networks and batches here are too small to share; tells how many
    threads there were.

    On a busy machine it is a matter of minutes, since the threads of one operation wait for each
    other: with one of two cores taken, scoring five policies took 2 min 38 s on two threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def keyed_draws(*parts: int | str) -> Iterator[None]:
    """What layers draw, dropout for example, depends on `parts` alone; the global state returns."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(randomness.key(*parts) % 2**63)
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Batches neither move the statistics of `model` nor depend on each other; its modes return."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
