"""Job records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler
from superduper_nb.server_ext.handlers.operations import Work, authorized, operation
from superduper_nb.server_ext.replies import JobReply, JobsReply, LogsReply, NoticeReply
from superduper_nb.server_ext.schemas import JobsNotice, JobsQuery, LogsQuery, NoBody, NoQuery, OneJobQuery

__all__ = ["JobCancelHandler", "JobHandler", "JobLogsHandler", "JobRetryHandler", "JobsHandler"]

RESOURCE: Final = "superduper:jobs"


class JobsHandler(ApiHandler):
    """``jobs``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("List jobs, newest first", query=JobsQuery, reply=JobsReply, lane="control")
    def get(self, work: Work[NoBody, JobsQuery]) -> Mapping[str, Any]:
        """List a page of them."""
        asked = work.query
        jobs = work.services.jobs(asked.db).list(status=asked.status, since=asked.since, limit=asked.limit)
        return {"jobs": jobs, "next": jobs[-1]["_id"] if len(jobs) == asked.limit else None}

    @web.authenticated
    @authorized(action="execute", resource=RESOURCE)
    @operation(
        "Say that components or jobs were written",
        body=JobsNotice,
        reply=NoticeReply,
        lane="control",
    )
    def post(self, work: Work[JobsNotice, NoQuery]) -> Mapping[str, Any]:
        """Have it noticed, and them started, at once instead of a moment later."""
        work.services.notify(work.body.database, [])
        return {"database": work.body.database}


class JobHandler(ApiHandler):
    """``jobs/<job>``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("The record of a job", query=OneJobQuery, reply=JobReply, lane="control")
    def get(self, work: Work[NoBody, OneJobQuery]) -> Mapping[str, Any]:
        """Return it."""
        return work.services.jobs(work.query.db).get(work.path["job"])


class JobLogsHandler(ApiHandler):
    """``jobs/<job>/logs``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("What a job printed", query=LogsQuery, reply=LogsReply, lane="control")
    def get(self, work: Work[NoBody, LogsQuery]) -> Mapping[str, Any]:
        """Return a page of lines."""
        lines = work.services.jobs(work.query.db).logs(work.path["job"], since=work.query.since)
        return {"lines": lines, "next": lines[-1]["n"] + 1 if lines else work.query.since}


class JobCancelHandler(ApiHandler):
    """``jobs/<job>/cancel``."""

    @web.authenticated
    @authorized(action="write", resource=RESOURCE)
    @operation("Stop a job", query=OneJobQuery, reply=JobReply, lane="control")
    def post(self, work: Work[NoBody, OneJobQuery]) -> Mapping[str, Any]:
        """Stop it; what it has written stays."""
        return work.services.jobs(work.query.db).cancel(work.path["job"])


class JobRetryHandler(ApiHandler):
    """``jobs/<job>/retry``."""

    @web.authenticated
    @authorized(action="execute", resource=RESOURCE)
    @operation("Queue an ended job again", query=OneJobQuery, reply=JobReply, lane="control")
    def post(self, work: Work[NoBody, OneJobQuery]) -> Mapping[str, Any]:
        """Queue it, and have it started."""
        record = work.services.jobs(work.query.db).retry(work.path["job"])
        work.services.notify(work.query.db, [record["_id"]])
        return record
