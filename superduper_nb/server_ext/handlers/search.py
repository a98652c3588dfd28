"""Search by similarity."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from tornado import web

from superduper_nb.server_ext.handlers.base import SHORT, ApiHandler
from superduper_nb.server_ext.handlers.operations import Operation, Work, authorized, operation
from superduper_nb.server_ext.replies import SearchReply
from superduper_nb.server_ext.schemas import NoQuery, SearchBody, check
from superduper_nb.server_ext.wire import decode_objects, dump, load, vectors

if TYPE_CHECKING:
    from superduper_nb.search import SearchReply as Found
    from superduper_nb.search import SearchRequest
    from superduper_nb.server_ext.app import SuperduperApp
    from superduper_nb.server_ext.engine import ServerServices

__all__ = ["SearchHandler", "gathered", "searched"]

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
        accepted = self.accepted()
        services = await self.app.engine.services(self.app.ready_timeout)
        given = self.request.headers.get("Content-Type", "")
        if (asked := gathered(self.app, services, bytes(self.received), given, accepted)) is not None:
            return await asked, accepted
        return await super().in_lane(made, method, names, query)


def gathered(
    app: SuperduperApp, services: ServerServices, received: bytes, content_type: str, accepted: str
) -> asyncio.Future[bytes] | None:
    """Answer a search by a vector alone together with others that wait; None to any other."""
    # Any other kind of body takes long to read, or decodes images: not in the event loop.
    if len(received) > SHORT or b"vector" not in received or b"like" in received:
        return None
    request = _request(_read(received, content_type))
    if (company := request.company) is None:
        return None

    def answer(asked: Sequence[tuple[SearchRequest, str]]) -> list[bytes | Exception]:
        found = services.search_each([each for each, _ in asked])
        return [_dumped(outcome, kind) for outcome, (_, kind) in zip(found, asked, strict=True)]

    return app.lanes["search"].gather(company, (request, accepted), answer)


def searched(services: ServerServices, received: bytes, content_type: str, accepted: str) -> bytes:
    """Answer a search, whatever it is by; in a thread."""
    return dump(_reply(services.search(_request(_read(received, content_type)))), accepted)


def _read(received: bytes, content_type: str) -> SearchBody:
    return check(SearchBody, load(received, content_type) if received else {})


def _request(body: SearchBody) -> SearchRequest:
    from superduper_nb.search import SearchRequest

    given = {name: getattr(body, name) for name in body.model_fields_set}
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
