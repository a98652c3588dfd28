"""The indexes in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler
from superduper_nb.server_ext.handlers.operations import Work, authorized, operation
from superduper_nb.server_ext.replies import IndexesReply, IndexReply
from superduper_nb.server_ext.schemas import NoBody, NoQuery

__all__ = ["IndexHandler", "IndexRefreshHandler", "IndexesHandler"]

RESOURCE: Final = "superduper:indexes"


class IndexesHandler(ApiHandler):
    """``indexes``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("List the indexes in memory", reply=IndexesReply, lane="control")
    def get(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """List them."""
        return {"indexes": work.services.indexes()}


class IndexHandler(ApiHandler):
    """``indexes/<database>/<collection>/<index>``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("Size, state and freshness of an index", reply=IndexReply, lane="control")
    def get(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """Describe it."""
        return work.services.describe_index(work.path["database"], work.path["collection"], work.path["index"])


class IndexRefreshHandler(ApiHandler):
    """``indexes/<database>/<collection>/<index>/refresh``."""

    @web.authenticated
    @authorized(action="write", resource=RESOURCE)
    @operation("Load an index anew", reply=IndexReply, lane="control")
    def post(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """Refresh it."""
        return work.services.refresh_index(work.path["database"], work.path["collection"], work.path["index"])
