"""The short way of a prediction or search: no handler of Jupyter's, which costs as much as the rest of a prediction.

It is taken where nothing is special: a program with the server's token, on a server that leaves token, users and
permissions to Jupyter's own code, a short body, engines that are up. The handler would give the same answer, and a
handler gives it where this way ends in an error.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from jupyter_server._tz import utcnow
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest, RequestStartLine, format_timestamp
from tornado.routing import Router

from superduper_nb.errors import InvalidInputError
from superduper_nb.server_ext.handlers.base import SHORT, ApiBase, ApiHandler
from superduper_nb.server_ext.handlers.search import gathered, searched
from superduper_nb.server_ext.letting_in import allows_all, shows_the_token
from superduper_nb.server_ext.metrics import REQUEST_SECONDS
from superduper_nb.server_ext.schemas import PredictBody, check_path, read_asked
from superduper_nb.server_ext.wire import BSON, JSON, form_of
from superduper_nb.serving.forms import reply
from superduper_nb.serving.waiting import when_answered

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from superduper_nb.server_ext.app import SuperduperApp
    from superduper_nb.server_ext.engine import ServerServices
    from superduper_nb.serving import Body, Form, Prediction

__all__ = ["DirectPrediction", "DirectSearch", "DirectWay"]

_OF_EACH: Final = frozenset({"Content-Length", "Content-Type", "Date"})
"""Headers that not all answers have in common."""
_CLOSES: Final = b"Connection: close\r\n"
_ANSWER: Final = b"HTTP/1.1 200 OK\r\n%bDate: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"


class DirectWay(Router):
    """Answers the requests to a route that are nothing special; leaves all others to the routes after it.

    Parameters
    ----------
    app : SuperduperApp
        The extension.
    template : str
        The route, for metrics.
    handler : type
        Its handler.
    kind : type
        Answers one.
    """

    def __init__(self, app: SuperduperApp, template: str, handler: type[ApiBase], kind: type[_Direct]) -> None:
        assert app.serverapp is not None
        self.app, self.web_app = app, app.serverapp.web_app
        self._handler, self._kind = handler, kind
        self.options = {"name": app.name, "template": template}
        self.seconds = REQUEST_SECONDS.labels(f"POST {template}", 200)
        self._head: bytes | None = None

    def find_handler(self, request: HTTPServerRequest, **parameters: Any) -> HTTPMessageDelegate | None:
        """Return who answers a request; None where its headers say that it is something special."""
        services = self.app.engine.ready
        if services is None or not (self._is_plain(request) and self._is_let_in(request)):
            return None
        try:
            names = check_path({name: value.decode() for name, value in parameters.get("path_kwargs", {}).items()})
        except (InvalidInputError, UnicodeDecodeError):
            return None
        return self._kind(self, request, services, names)

    def _is_plain(self, request: HTTPServerRequest) -> bool:
        headers = request.headers
        length = headers.get("Content-Length", "")
        short = length.isdecimal() and int(length) <= min(SHORT, self.app.max_body_bytes)
        common = request.method == "POST" and request.version == "HTTP/1.1"
        return common and short and not request.query and "Origin" not in headers

    def _is_let_in(self, request: HTTPServerRequest) -> bool:
        if request.host not in self.app.hosts:  # it was not checked yet
            return False
        provider, authorizer = self.web_app.settings["identity_provider"], self.web_app.settings["authorizer"]
        return allows_all(authorizer) and shows_the_token(self._handler, provider, request)

    def head(self, request: HTTPServerRequest) -> bytes:
        """Return what each answer begins with, as the handler would send it."""
        if self._head is None:
            handler = self._handler(self.web_app, request, **self.options)
            copy_context().run(handler._let_in)  # which notes the handler in the context
            common = [pair for pair in handler._headers.get_all() if pair[0] not in _OF_EACH]
            self._head = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode("latin1")) for name, value in common)
        return self._head


class _Direct(HTTPMessageDelegate):
    """One request: reads the body, has the work done, writes the answer."""

    def __init__(
        self, way: DirectWay, request: HTTPServerRequest, services: ServerServices, names: dict[str, str]
    ) -> None:
        self._way, self._request, self.services, self.names = way, request, services, names
        self.app, self.body = way.app, b""
        self.content_type = request.headers.get("Content-Type", "")

    def data_received(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self.body += chunk

    def finish(self) -> None:
        """Begin to answer."""
        raise NotImplementedError

    @property
    def accepted(self) -> str:
        """The type of the answer."""
        return BSON if BSON in self._request.headers.get("Accept", "") else JSON

    def when_gone(self, drop: Callable[[], object]) -> None:
        """Have `drop` called when the client goes away: its work is dropped if that has not begun."""
        assert self._request.connection is not None
        self._request.connection.set_close_callback(drop)  # type: ignore[attr-defined]

    def write(self, body: bytes, content_type: str) -> None:
        """Answer."""
        connection = self._request.connection
        assert connection is not None
        # Not by `write_headers`: to copy, check and join a dozen headers costs more than the rest of an answer.
        closes = self._request.headers.get("Connection", "").lower() == "close"
        common = self._way.head(self._request) + (_CLOSES if closes else b"")
        connection.write(_ANSWER % (common, _date(int(time.time())), content_type.encode(), len(body), body))
        connection.finish()
        self._way.web_app.settings["api_last_activity"] = utcnow()
        self._way.seconds.observe(self._request.request_time())

    def fail(self, error: Exception) -> None:
        """Have a handler say what went wrong."""
        options = {**self._way.options, "error": error}
        delegate = self._way.web_app.get_handler_delegate(self._request, _Failed, options)
        start = RequestStartLine("POST", self._request.path, self._request.version)
        delegate.headers_received(start, self._request.headers)
        delegate.finish()


class DirectPrediction(_Direct):
    """A prediction. No task waits for it: what is written at once where the answer comes in costs the loop no round."""

    _gone = False

    def finish(self) -> None:
        """Have the model applied."""
        try:
            form_of(self.content_type)
            self._ask(read_asked(PredictBody, self.content_type, self.body))
        except Exception as error:
            self.fail(error)

    def _ask(self, body: Body) -> None:
        lane, form = self.app.lanes["predict"], self._form
        lane.enter()
        try:
            asked = self.services.ask(**self.names, body=body, form=form, timeout=self.app.predict_timeout)
        except Exception:
            lane.leave()
            raise
        self.when_gone(partial(self._drop, asked))
        when_answered(asked, self._answered)

    @property
    def _form(self) -> Form:
        return "bson" if self.accepted == BSON else "json"

    def _drop(self, asked: Future[Prediction]) -> None:
        self._gone = True
        asked.cancel()

    def _answered(self, asked: Future[Prediction]) -> None:
        self.app.lanes["predict"].leave()
        if self._gone:
            return
        try:
            made = asked.result()
            body = reply(self._form, made.outputs, version=made.version, took_ms=made.took_ms)
        except Exception as error:
            self.fail(error)
        else:
            self.write(body, self.accepted)


class DirectSearch(_Direct):
    """A search: together with others, where no task waits for it either, or else in a thread of its own."""

    def finish(self) -> None:
        """Begin to search."""
        try:
            asked = gathered(self.app, self.services, self.body, self.content_type, self.accepted)
        except Exception as error:
            self.fail(error)
            return
        if asked is None:
            self.when_gone(asyncio.get_running_loop().create_task(self._answer()).cancel)
        else:
            self.when_gone(asked.cancel)
            asked.add_done_callback(self._answered)

    def _answered(self, asked: asyncio.Future[bytes]) -> None:
        if asked.cancelled():  # the client has gone
            return
        try:
            body = asked.result()
        except Exception as error:
            self.fail(error)
        else:
            self.write(body, self.accepted)

    async def _answer(self) -> None:
        accepted = self.accepted
        try:
            body = await self.app.lanes["search"].run(
                partial(searched, self.services, self.body, self.content_type, accepted)
            )
        except Exception as error:
            self.fail(error)
        else:
            self.write(body, accepted)


class _Failed(ApiHandler):
    """Answers with an error, as all handlers do."""

    def initialize(self, name: str, template: str = "", error: Exception | None = None) -> None:
        """Take the error."""
        super().initialize(name, template)
        assert error is not None
        self._error = error

    async def post(self) -> None:
        """Raise it."""
        raise self.translated(self._error)


@lru_cache(1)
def _date(second: int) -> bytes:
    return format_timestamp(second).encode()
