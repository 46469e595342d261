"""How many threads torch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one core: networks and batches here are too small to share.

    On a busy machine it is a matter of minutes, since the threads of one operation wait for each
    other: with one of two cores taken, scoring five policies took 2 min 38 s on two threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
