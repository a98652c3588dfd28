"""pymongo's write results, each with the jobs that follow from the write."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from pymongo import results

from superduper_nb.client.jobs import Jobs

__all__ = ["BulkWriteResult", "DeleteResult", "InsertManyResult", "InsertOneResult", "UpdateResult", "with_jobs"]


class InsertOneResult(results.InsertOneResult):
    """`pymongo.results.InsertOneResult`, with ``jobs``."""

    __slots__ = ("jobs",)
    jobs: Jobs


class InsertManyResult(results.InsertManyResult):
    """`pymongo.results.InsertManyResult`, with ``jobs``."""

    __slots__ = ("jobs",)
    jobs: Jobs


class UpdateResult(results.UpdateResult):
    """`pymongo.results.UpdateResult`, with ``jobs``."""

    __slots__ = ("jobs",)
    jobs: Jobs


class BulkWriteResult(results.BulkWriteResult):
    """`pymongo.results.BulkWriteResult`, with ``jobs``."""

    __slots__ = ("jobs",)
    jobs: Jobs


class DeleteResult(results.DeleteResult):
    """`pymongo.results.DeleteResult`, with ``jobs``."""

    __slots__ = ("jobs",)
    jobs: Jobs


R = TypeVar("R", InsertOneResult, InsertManyResult, UpdateResult, BulkWriteResult, DeleteResult)

_CONTENT: Final[dict[type, str]] = {
    InsertOneResult: "inserted_id",
    InsertManyResult: "inserted_ids",
    UpdateResult: "raw_result",
    BulkWriteResult: "bulk_api_result",
    DeleteResult: "raw_result",
}
"""What each is made of, beside whether it is acknowledged."""


def with_jobs(result: Any, jobs: Jobs, cls: type[R]) -> R:
    """Return the same result as our class, with the jobs."""
    ours = cls(getattr(result, _CONTENT[cls]), result.acknowledged)
    ours.jobs = jobs
    return ours
