"""What comes out of a child's answers, for those who asked."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from superduper_nb.errors import ModelError, ServiceError
from superduper_nb.serving import wire
from superduper_nb.serving.lanes import Outcome, Request
from superduper_nb.serving.values import PICKLED, Prediction, Slice

__all__ = ["cut_off", "outcome_of", "outcome_of_part"]


def cut_off(ended: str) -> ServiceError:
    """Return what becomes of a stream whose process ended."""
    return ServiceError(f"The process that ran this stream ended ({ended}): ask again from the start.")


def outcome_of_part(answer: wire.Part | wire.Failure) -> Outcome:
    """Return what becomes of a request for a part of a stream."""
    if isinstance(answer, wire.Failure):
        return answer.error()
    return _read(answer.pieces, lambda pieces: Slice(pieces, answer.done, answer.version))


def outcome_of(request: Request, answer: bytes | wire.Failure, version: int | None) -> Outcome:
    """Return what becomes of a request."""
    if isinstance(answer, wire.Failure):
        return answer.error()
    if request.asked.form not in PICKLED:
        return Prediction(answer, version or 0, request.waited_ms)
    return _read(answer, lambda outputs: Prediction(outputs, version or 0, request.waited_ms))


def _read(pickled: bytes, make: Callable[[Any], Outcome]) -> Outcome:
    try:
        return make(pickle.loads(pickled))
    except Exception as error:
        return ModelError(f"The model's output can't be read outside its process: {type(error).__name__}: {error}")
