"""The generators that a model may draw random numbers from: they are the whole process's, a notebook's too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["random_state_kept", "seed_all"]


def seed_all(*parts: object) -> None:
    """Seed them all, by what the parts say: whoever says the same draws the same."""
    import torch

    random.seed(" ".join(map(str, parts)))
    seed = random.getrandbits(32)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a millisecond for devices that are not there
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give them back as they were."""
    import torch

    own, numpy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
