"""pymongo's write results, each with the jobs that follow from the write."""

from __future__ import annotations

from typing import Any

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


def with_jobs(result: Any, jobs: Jobs) -> Any:
    """Return the same result as our class, with the jobs."""
    if isinstance(result, results.InsertManyResult):
        ours: Any = InsertManyResult(result.inserted_ids, result.acknowledged)
    elif isinstance(result, results.InsertOneResult):
        ours = InsertOneResult(result.inserted_id, result.acknowledged)
    elif isinstance(result, results.BulkWriteResult):
        ours = BulkWriteResult(result.bulk_api_result, result.acknowledged)
    elif isinstance(result, results.DeleteResult):
        ours = DeleteResult(result.raw_result, result.acknowledged)
    else:
        ours = UpdateResult(result.raw_result, result.acknowledged)
    ours.jobs = jobs
    return ours
