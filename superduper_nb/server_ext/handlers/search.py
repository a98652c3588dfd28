"""Search by similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from tornado import web

from superduper_nb.server_ext.handlers.base import SHORT, ApiHandler, Operation, Work, authorized, operation
from superduper_nb.server_ext.replies import SearchReply
from superduper_nb.server_ext.schemas import NoQuery, SearchBody
from superduper_nb.server_ext.wire import decode_objects, dump, vectors

if TYPE_CHECKING:
    from superduper_nb.search import SearchReply as Found
    from superduper_nb.search import SearchRequest

__all__ = ["SearchHandler"]

RESOURCE: Final = "superduper:search"


class SearchHandler(ApiHandler):
    """``search``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("Find the documents nearest to a query", body=SearchBody, reply=SearchReply, lane="search")
    def post(self, work: Work[SearchBody, NoQuery]) -> Mapping[str, Any]:
        """Search once, or for each query of a batch."""
        return _reply(work.services.search(_request(work.body)))

    async def in_lane(
        self, made: Operation, method: Callable[..., Mapping[str, Any]], names: dict[str, str], query: BaseModel
    ) -> tuple[bytes, str]:
        """Answer a search by a vector alone together with others that wait; any other as every handler does."""
        # Any other kind of body takes long to read, or decodes images: not in the event loop.
        if len(self.received) > SHORT or b"vector" not in self.received or b"like" in self.received:
            return await super().in_lane(made, method, names, query)
        accepted = self.accepted()
        services = await self.app.engine.services(self.app.ready_timeout)
        request = _request(self.body(made))
        if (company := request.company) is None:
            return await super().in_lane(made, method, names, query)

        def answer(asked: Sequence[tuple[SearchRequest, str]]) -> list[bytes | Exception]:
            found = services.search_each([each for each, _ in asked])
            return [_dumped(outcome, kind) for outcome, (_, kind) in zip(found, asked, strict=True)]

        return await self.app.lanes["search"].gather(company, (request, accepted), answer), accepted


def _request(body: SearchBody) -> SearchRequest:
    from superduper_nb.search import SearchRequest

    given = {name: getattr(body, name) for name in SearchBody.model_fields}
    asked = {name: value for name, value in given.items() if value is not None}
    for name in {"like", "likes", "unlike"} & asked.keys():
        asked[name] = decode_objects(asked[name])
    if "vector" in asked:
        rows, many = vectors(asked["vector"])
        asked["vector"] = rows if many else rows[0]
    return SearchRequest(**asked)


def _reply(found: Found) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


def _dumped(outcome: Found | Exception, content_type: str) -> bytes | Exception:
    if isinstance(outcome, Exception):
        return outcome
    try:
        return dump(_reply(outcome), content_type)
    except Exception as error:
        return error
