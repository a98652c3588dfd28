"""Search by similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler, Work, authorized, operation
from superduper_nb.server_ext.replies import SearchReply
from superduper_nb.server_ext.schemas import NoQuery, SearchBody
from superduper_nb.server_ext.wire import decode_objects, vectors

if TYPE_CHECKING:
    from superduper_nb.search import SearchReply as Found

__all__ = ["SearchHandler"]

RESOURCE: Final = "superduper:search"


class SearchHandler(ApiHandler):
    """``search``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("Find the documents nearest to a query", body=SearchBody, reply=SearchReply, lane="search")
    def post(self, work: Work[SearchBody, NoQuery]) -> Mapping[str, Any]:
        """Search once, or once for each vector of a list."""
        from superduper_nb.search import SearchRequest

        asked = {name: getattr(work.body, name) for name in SearchBody.model_fields}
        if asked["like"] is not None:
            asked["like"] = decode_objects(asked["like"])
        if asked["vector"] is None:
            return asdict(work.services.search(SearchRequest(**asked)))
        rows, many = vectors(asked["vector"])
        found = [work.services.search(SearchRequest(**{**asked, "vector": row})) for row in rows]
        return _merged(found) if many else asdict(found[0])


def _merged(found: Sequence[Found]) -> dict[str, Any]:
    """Return the replies to a list of vectors as one."""
    columns = {name: [getattr(reply, name) for reply in found] for name in ("ids", "scores", "distances")}
    if found[0].distances is None:
        columns["distances"] = None  # type: ignore[assignment]
    worst = {name: max(getattr(reply, name) for reply in found) for name in ("candidates", "pending")}
    return {**asdict(found[0]), **columns, **worst, "took_ms": sum(reply.took_ms for reply in found)}
