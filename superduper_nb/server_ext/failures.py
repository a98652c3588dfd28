"""Which HTTP status an error becomes, and what its body says: the one place that knows."""

from __future__ import annotations

import re
from http.client import responses
from typing import Any, Final

from bson.errors import BSONError
from tornado.web import HTTPError

from superduper_nb.errors import (
    ConflictError,
    DeadlineError,
    InvalidInputError,
    JobFailedError,
    ModelError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    SuperduperError,
    TrustError,
)

__all__ = ["ApiError", "error_body", "redact", "translate"]

_STATUSES: Final[tuple[tuple[type[SuperduperError], int], ...]] = (
    (InvalidInputError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (TrustError, 409),
    (JobFailedError, 409),
    (ModelError, 422),
    (OverloadedError, 429),
    (DeadlineError, 504),
    (ServiceError, 503),
)
_CODES: Final = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}
_REFUSED: Final = frozenset({13, 18})  # Unauthorized, AuthenticationFailed
_CREDENTIALS: Final = re.compile(r"(?<=://)\S*@")


class ApiError(HTTPError):
    """An answer with a status of 4xx or 5xx.

    Parameters
    ----------
    status : int
        HTTP status.
    message : str
        For people; also where it holds a percent sign, which tornado's own class would double.
    code : str, optional
        For programs.
    retry_after : float, optional
        Seconds after which a new try makes sense.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(status, "%s", message)
        self.message = message
        self.code = code or _CODES.get(status, "error")
        self.retry_after = retry_after


def translate(error: BaseException) -> ApiError | None:
    """Return the answer for an error; None for a surprise, which is ours to mend and not the caller's to read."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, SuperduperError):
        status = next((status for cls, status in _STATUSES if isinstance(error, cls)), 500)
        retry_after = getattr(error, "retry_after", 5.0) if status in (429, 503) else None
        return ApiError(status, str(error), code=error.code, retry_after=retry_after)
    if isinstance(error, BSONError):
        return ApiError(400, f"The request holds what BSON can't: {error}", code="invalid_input")
    return _of_mongodb(error)


def _of_mongodb(error: BaseException) -> ApiError | None:
    """Translate what MongoDB said: of a request only the filter reaches it, so what it refuses is the filter."""
    from pymongo.errors import ConnectionFailure, ExecutionTimeout, OperationFailure

    if isinstance(error, ExecutionTimeout):
        return ApiError(504, "MongoDB took longer than allowed for the filter.", code="deadline")
    if isinstance(error, ConnectionFailure) or (isinstance(error, OperationFailure) and error.code in _REFUSED):
        message = f"MongoDB does not answer ({type(error).__name__}): try again in a few seconds."
        return ApiError(503, message, code="mongodb_unavailable", retry_after=5.0)
    if isinstance(error, OperationFailure):
        said = (error.details or {}).get("errmsg", "no reason given")
        return ApiError(400, f"MongoDB refuses the filter: {said}", code="invalid_input")
    return None


def error_body(status: int, error: BaseException | None) -> dict[str, Any]:
    """Return the body of an answer with a status of 4xx or 5xx; never with a traceback."""
    reason = responses.get(status, "Unknown")
    if isinstance(error, ApiError):
        return {"message": error.message, "reason": reason, "code": error.code}
    message = reason
    if isinstance(error, HTTPError) and error.log_message:
        message = error.log_message % error.args if error.args else error.log_message.replace("%%", "%")
    return {"message": message, "reason": reason, "code": _CODES.get(status, "internal" if status >= 500 else "error")}


def redact(text: str) -> str:
    """Blot out user names and passwords in URIs, for a log."""
    return _CREDENTIALS.sub("***@", text)
