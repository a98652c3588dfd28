"""What all handlers of the API share: who may call, how bodies are read, where work runs, how errors are answered."""

from __future__ import annotations

import asyncio
import functools
import json
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from jupyter_server.base.call_context import CallContext
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from pydantic import BaseModel
from tornado import web

from superduper_nb.server_ext.failures import ApiError, error_body, redact, translate
from superduper_nb.server_ext.handlers.operations import Operation, Work
from superduper_nb.server_ext.letting_in import shows_the_token
from superduper_nb.server_ext.metrics import REQUEST_SECONDS
from superduper_nb.server_ext.schemas import AskingBody, check, check_path, read_asked
from superduper_nb.server_ext.wire import BSON, JSON, dump, form_of, load
from superduper_nb.serving import Body, UnreadBody

if TYPE_CHECKING:
    from superduper_nb.server_ext.app import SuperduperApp

__all__ = ["SHORT", "ApiBase", "ApiHandler", "UnknownHandler"]

_JUPYTERS_OWN: Final = frozenset({"token", "no_track_activity", "_xsrf", "_"})
"""Query parameters that mean something to Jupyter, or to caches."""

_HOSTS: Final = 16
_POLICY: Final = "superduper_content_security_policy"
SHORT: Final = 64 * 1024
"""Bytes of a body that are read in the event loop in less than a millisecond. Reading more in a thread would hold it
up, too: parsers written in C do not let go of the interpreter."""


class ApiBase(ExtensionHandlerMixin, JupyterHandler):
    """For handlers of the API, whatever their protocol."""

    template = ""
    """The route, for metrics."""
    received: bytes | bytearray = b""
    """The request's body."""
    _task: asyncio.Task[Any] | None = None
    _gone = False

    def initialize(self, name: str, template: str = "") -> None:
        """Take what the route table gives."""
        super().initialize(name)
        self.template = template

    @functools.cached_property
    def app(self) -> SuperduperApp:
        """The extension."""
        return cast("SuperduperApp", self.extensionapp)

    async def prepare(self, **options: Any) -> None:
        """Refuse strangers and foreign pages, before any body is read."""
        if self._shows_the_token():
            self._let_in()
            return
        await super().prepare(**options)
        if self.request.method == "OPTIONS":
            return
        if not self.current_user:
            raise web.HTTPError(403)
        # A page elsewhere may have the browser send a cookie along with a GET, for instance as the source of a script.
        foreign = "Referer" in self.request.headers and not self.token_authenticated and not self.check_referer()
        if foreign and self.request.method in ("GET", "HEAD"):
            raise ApiError(403, "Blocked: this request comes from another site.")

    def check_host(self) -> bool:
        """Check a name of this server once, as Jupyter does: each request of a connection repeats it."""
        allowed, host = self.app.hosts, self.request.host
        if host in allowed:
            return True
        if not super().check_host():
            return False
        if len(allowed) < _HOSTS:
            allowed.add(host)
        return True

    def _shows_the_token(self) -> bool:
        return shows_the_token(type(self), self.identity_provider, self.request)

    def _let_in(self) -> None:
        """Do what of Jupyter's `prepare` remains for a request with the right token, which no cookie can forge.

        All programs are one user, instead of a new one with a new cookie each time.
        """
        CallContext.set(CallContext.JUPYTER_HANDLER, self)
        if not self.check_host():
            raise web.HTTPError(403)
        if self.app.program is None:
            self.app.program = self.identity_provider.generate_anonymous_user(self)
        self.current_user = self._jupyter_current_user = self.app.program
        self._token_authenticated = True
        self.set_cors_headers()

    def compute_etag(self) -> None:
        """Give answers no hash of themselves: nobody asks for the same one again."""

    def _log(self) -> None:
        """Spare the making of a line that no handler would write; our own metrics count the request."""
        if self.get_status() >= 400 or self.app.logs_requests:
            super()._log()

    async def answer(self, made: Operation, method: Callable[..., Any], path: Mapping[str, str]) -> None:
        """Send what comes of a request: a reply, or the error that was raised."""
        self._task = asyncio.current_task()
        try:
            names, query = check_path(path), check(made.query, self._query())
            if made.yields:
                await self._yielding(made, method, names, query)
                return
            data, content_type = await self._way(made)(made, method, names, query)
        except asyncio.CancelledError:
            if self._gone:
                raise web.Finish from None
            raise
        except web.HTTPError:
            raise
        except Exception as error:
            raise self.translated(error) from None
        self.send(data, content_type)

    def _way(self, made: Operation) -> Callable[..., Awaitable[tuple[bytes, str]]]:
        if made.lane is None:
            return self._at_once
        return self._waiting if made.waits else self.in_lane

    async def in_lane(
        self, made: Operation, method: Callable[..., Mapping[str, Any]], names: dict[str, str], query: BaseModel
    ) -> tuple[bytes, str]:
        """Do the work in a thread; return the body of the reply, and its type."""
        assert made.lane
        accepted = self.accepted()
        services = await self.app.engine.services(self.app.ready_timeout)

        def call() -> bytes:
            return dump(method(Work(services, names, query, self.body(made), accepted)), accepted)

        return await self.app.lanes[made.lane].run(call), accepted

    async def _waiting(
        self, made: Operation, method: Callable[..., Awaitable[bytes]], names: dict[str, str], query: BaseModel
    ) -> tuple[bytes, str]:
        assert made.lane
        with self.app.lanes[made.lane].hold():
            work = await self._work(made, names, query)
            return await method(work), work.content_type

    async def _yielding(
        self, made: Operation, method: Callable[..., AsyncGenerator[bytes]], names: dict[str, str], query: BaseModel
    ) -> None:
        """Send parts as they come. Until the first is there, an error is an answer of its own."""
        assert made.lane
        with self.app.lanes[made.lane].hold():
            work = await self._work(made, names, query)
            content_type = work.content_type if work.content_type == BSON else str(made.reply)
            async with aclosing(method(work)) as parts:
                async for part in parts:
                    self.set_header("Content-Type", content_type)
                    self.set_header("Cache-Control", "no-store")
                    self.set_header("X-Accel-Buffering", "no")  # nginx would hold parts back
                    self.write(part)
                    await self.flush()
        self.send(b"", content_type)

    async def _work(self, made: Operation, names: dict[str, str], query: BaseModel) -> Work[Any, Any]:
        assert made.lane
        services = await self.app.engine.services(self.app.ready_timeout)
        return Work(services, names, query, self._asked(made), self.accepted())

    def _asked(self, made: Operation) -> Body | UnreadBody:
        content_type = self.request.headers.get("Content-Type", "")
        form_of(content_type)
        data, read = bytes(self.received), partial(read_asked, cast("type[AskingBody]", made.body), content_type)
        return read(data) if len(data) <= SHORT else UnreadBody(data, read)

    def body(self, made: Operation) -> Any:
        """Return the checked body."""
        content_type = self.request.headers.get("Content-Type", "")
        return check(made.body, load(bytes(self.received), content_type) if self.received else {})

    async def _at_once(
        self, made: Operation, method: Callable[..., Awaitable[Any]], names: dict[str, str], query: BaseModel
    ) -> tuple[bytes, str]:
        reply = await method(query, **names)
        if isinstance(made.reply, str):
            return reply, made.reply
        accepted = self.accepted()
        return dump(reply, accepted), accepted

    def translated(self, error: Exception) -> ApiError:
        """Return the answer for an error; a surprise goes to the log."""
        if (answer := translate(error)) is not None:
            return answer
        self.log.error("%s %s failed:\n%s", self.request.method, self.template, redact(traceback.format_exc()))
        return ApiError(500, "The server failed on this request: its log says why.", code="internal")

    def _query(self) -> dict[str, str | None]:
        names = self.request.query_arguments.keys() - _JUPYTERS_OWN
        # JupyterLab asks with the time as one more name, so that no cache answers.
        return {name: self.get_query_argument(name, strip=False) for name in names if not name.isdigit()}

    def accepted(self) -> str:
        """Return the type of the answer."""
        return BSON if BSON in self.request.headers.get("Accept", "") else JSON

    def send(self, data: bytes, content_type: str) -> None:
        """End the request with a body."""
        self.set_header("Content-Type", content_type)
        self.finish(data)

    def log_exception(self, *args: Any) -> None:
        """Leave it to `write_error`: tornado's own line holds the query, and with it perhaps a token."""

    def write_error(self, status_code: int, **options: Any) -> None:
        """Answer with ``{message, reason, code}``."""
        error = options.get("exc_info", (None, None, None))[1]
        body = error_body(status_code, error)
        if isinstance(error, ApiError) and error.retry_after is not None:
            self.set_header("Retry-After", str(max(1, round(error.retry_after))))
        if error is not None and not isinstance(error, web.HTTPError):
            trace = redact("".join(traceback.format_exception(error)))
            self.log.error("%s %s failed:\n%s", self.request.method, self.template, trace)
        self.log.warning("%s %s answered %d: %r", self.request.method, self.request.path, status_code, body["message"])
        self.send(json.dumps(body).encode(), JSON)

    def on_connection_close(self) -> None:
        """Drop the work of a client that went away, if it has not begun."""
        self._gone = True
        super().on_connection_close()
        if self._task is not None:
            self._task.cancel()

    def on_finish(self) -> None:
        """Count the request."""
        self._task = None  # whose context holds this handler: only the garbage collector would find the two
        method = self.request.method if self.request.method in self.SUPPORTED_METHODS else "other"
        REQUEST_SECONDS.labels(f"{method} {self.template}", self.get_status()).observe(self.request.request_time())
        super().on_finish()


@web.stream_request_body
class ApiHandler(ApiBase, APIHandler):
    """A handler of the API. A body comes in parts, so that one that is too long is refused before it is here."""

    @property
    def content_security_policy(self) -> str:
        """The policy of Jupyter's own API, put together once."""
        if _POLICY not in self.settings:
            self.settings[_POLICY] = super().content_security_policy
        return cast("str", self.settings[_POLICY])

    async def prepare(self, **options: Any) -> None:
        """Set the limit for the body."""
        await super().prepare(**options)
        limit = self.app.max_body_bytes
        announced = self.request.headers.get("Content-Length", "0")
        if announced.isdigit() and int(announced) > limit:
            message = f"The body has {announced} bytes; at most {limit} are taken (SuperduperApp.max_body_bytes)."
            raise ApiError(413, message)
        self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]  # for one that announces no length
        self.received = bytearray()

    def data_received(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.received += chunk

    def send(self, data: bytes, content_type: str) -> None:
        """End the request with a body."""
        self.finish(data, set_content_type=content_type)


class UnknownHandler(ApiHandler):
    """Paths of the API that do not exist."""

    async def prepare(self, **options: Any) -> None:
        """Answer every verb alike."""
        await super().prepare(**options)
        raise ApiError(404, "There is no such path: openapi.json lists those there are.")
