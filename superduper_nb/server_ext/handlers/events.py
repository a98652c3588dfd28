"""Events of jobs and indexes: pushed over a websocket, or fetched page by page."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.websocket import WebSocketMixin
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from superduper_nb.errors import InvalidInputError
from superduper_nb.server_ext.failures import ApiError
from superduper_nb.server_ext.handlers.base import ApiBase
from superduper_nb.server_ext.handlers.operations import operation
from superduper_nb.server_ext.replies import EventsReply
from superduper_nb.server_ext.schemas import EventsQuery, check
from superduper_nb.server_ext.wire import JSON, dump

__all__ = ["EventsHandler"]

RESOURCE: Final = "superduper:events"


class EventsHandler(WebSocketMixin, WebSocketHandler, ApiBase):
    """``events``: a websocket where the request asks for one, else a page of events as JSON."""

    _since = 0
    _sender: asyncio.Task[None] | None = None

    @property
    def content_security_policy(self) -> str:
        """As for the rest of the API."""
        return f"{super().content_security_policy}; default-src 'none'"

    @ws_authenticated
    async def get(self) -> None:
        """Upgrade or answer."""
        upgrade = self.request.headers.get("Upgrade", "").lower() == "websocket"
        await self._authorize("execute" if upgrade else "read")
        if not upgrade:
            await self._page()
            return
        try:
            self._since = check(EventsQuery, self._query()).since
        except InvalidInputError as error:
            raise self.translated(error) from None
        await super().get()

    @operation("Events of jobs and indexes; a websocket where asked for", query=EventsQuery, reply=EventsReply)
    async def _page(self, query: EventsQuery) -> dict[str, Any]:
        page = self.app.events.since(query.since)
        return {"events": page.events, "next": page.next, "missed": page.missed}

    get.operation = _page.operation  # type: ignore[attr-defined]

    async def _authorize(self, action: str) -> None:
        if not await ensure_async(self.authorizer.is_authorized(self, self.current_user, action, RESOURCE)):
            raise ApiError(403, f"User is not authorized to {action} on resource: {RESOURCE}.")

    async def open(self) -> None:
        """Begin to push."""
        super().open()
        self._sender = asyncio.create_task(self._push(self._since))

    async def _push(self, since: int) -> None:
        """Send what is new as fast as the reader takes it; who is too slow is told that it missed something."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        end = self.app.events.listen(lambda: loop.call_soon_threadsafe(news.set))
        try:
            while True:
                news.clear()
                page = self.app.events.since(since)
                if page.missed:
                    await self.write_message(dump({"type": "missed", "seq": page.next}, JSON))
                for event in page.events:
                    await self.write_message(dump(event, JSON))
                since = page.next
                if not page.events:
                    await news.wait()
        except WebSocketClosedError:
            pass
        finally:
            end()

    def on_message(self, message: str | bytes) -> None:
        """Take nothing: this socket only sends."""

    def on_close(self) -> None:
        """Stop pushing."""
        if self._sender is not None:
            self._sender.cancel()
