"""Search by similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler, Work, authorized, operation
from superduper_nb.server_ext.replies import SearchReply
from superduper_nb.server_ext.schemas import NoQuery, SearchBody
from superduper_nb.server_ext.wire import decode_objects, vectors

__all__ = ["SearchHandler"]

RESOURCE: Final = "superduper:search"


class SearchHandler(ApiHandler):
    """``search``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("Find the documents nearest to a query", body=SearchBody, reply=SearchReply, lane="search")
    def post(self, work: Work[SearchBody, NoQuery]) -> Mapping[str, Any]:
        """Search once, or for each query of a batch."""
        from superduper_nb.search import SearchRequest

        given = {name: getattr(work.body, name) for name in SearchBody.model_fields}
        asked = {name: value for name, value in given.items() if value is not None}
        for name in {"like", "likes", "unlike"} & asked.keys():
            asked[name] = decode_objects(asked[name])
        if "vector" in asked:
            rows, many = vectors(asked["vector"])
            asked["vector"] = rows if many else rows[0]
        return asdict(work.services.search(SearchRequest(**asked)))
