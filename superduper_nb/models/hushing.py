"""Keeps what torchao says when it is imported out of notebooks: which of its kernels are for other machines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["torchao_hushed"]

_LOGGERS: Final = ("torchao", "torch.utils._pytree")


@contextmanager
def torchao_hushed() -> Iterator[None]:
    """Have torchao, which transformers imports wherever it is installed, tell errors only."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
