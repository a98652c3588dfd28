"""How a verb of a handler is written, and what it is given.

A verb of a leaf class reads, from the outside in::

    @web.authenticated
    @authorized(action="read", resource="superduper:search")
    @operation("Find the nearest documents", body=SearchBody, reply=SearchReply, lane="search")
    def post(self, work: Work[SearchBody, NoQuery]) -> Mapping[str, Any]: ...

With a lane, the method is plain blocking code that runs in a thread, reading and writing of bodies included; without
one, it is a coroutine that only looks at what is in memory. A method with a lane that is a coroutine itself only waits
for the model server: it runs in the event loop, gets what that is asked for, and returns the bytes of the reply, or
yields them as they come.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from jupyter_server.auth.decorator import authorized as jupyter_authorized
from pydantic import BaseModel

from superduper_nb.server_ext.schemas import NoBody, NoQuery

if TYPE_CHECKING:
    from superduper_nb.server_ext.engine import ServerServices
    from superduper_nb.server_ext.handlers.base import ApiBase
    from superduper_nb.server_ext.lanes import LaneName

__all__ = ["Operation", "Work", "authorized", "operation"]

Verb = Callable[..., Awaitable[None]]
B = TypeVar("B")
Q = TypeVar("Q", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Operation:
    """A verb of a route: what it takes, what it answers, where it runs.

    Attributes
    ----------
    reply : type or str
        A model, or the content type of an answer that is no object.
    lane : str or None
        Whose threads do the work.
    waits : bool
        The work is a coroutine, which only waits for others.
    yields : bool
        It yields parts of the reply as they come.
    """

    summary: str
    reply: type[BaseModel] | str
    body: type[BaseModel]
    query: type[BaseModel]
    lane: LaneName | None
    waits: bool
    yields: bool


@dataclass(frozen=True, slots=True)
class Work(Generic[B, Q]):
    """A checked request.

    Attributes
    ----------
    services : ServerServices
        The engines.
    path : dict
        The names in the path.
    body : pydantic.BaseModel, or Body or UnreadBody
        What was sent; of a method that waits for the model server, what that is asked for.
    content_type : str
        What the answer will be: JSON or BSON.
    """

    services: ServerServices
    path: dict[str, str]
    query: Q
    body: B
    content_type: str


def operation(
    summary: str,
    *,
    reply: type[BaseModel] | str,
    body: type[BaseModel] = NoBody,
    query: type[BaseModel] = NoQuery,
    lane: LaneName | None = None,
) -> Callable[[Callable[..., Any]], Verb]:
    """Make a verb of a method: of `Work` where there is a lane, else a coroutine of (query, **names)."""

    def decorate(method: Callable[..., Any]) -> Verb:
        waits, yields = inspect.iscoroutinefunction(method), inspect.isasyncgenfunction(method)
        made = Operation(summary, reply, body, query, lane, waits, yields)

        @functools.wraps(method)
        async def verb(self: ApiBase, **path: str) -> None:
            await self.answer(made, partial(method, self), path)

        verb.operation = made  # type: ignore[attr-defined]
        return verb

    return decorate


def authorized(*, action: str, resource: str) -> Callable[[Verb], Verb]:
    """Ask the server's authorizer.

    Jupyter's decorator with nothing left open: what it works out itself, it works out once, for all who share a method.
    """
    return cast("Callable[[Verb], Verb]", jupyter_authorized(action=action, resource=resource))
