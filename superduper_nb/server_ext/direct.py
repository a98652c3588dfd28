"""The short way of a prediction: no handler of Jupyter's, which costs as much as the rest.

It is taken where nothing is special: a program with the server's token, on a server that leaves token, users and
permissions to Jupyter's own code, a short body, engines that are up. `PredictHandler` would give the same answer, and
gives it where this way ends in an error.
"""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from jupyter_server._tz import utcnow
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
    format_timestamp,
)
from tornado.routing import Router

from superduper_nb.errors import InvalidInputError
from superduper_nb.server_ext.handlers.base import SHORT
from superduper_nb.server_ext.handlers.models import PredictHandler
from superduper_nb.server_ext.letting_in import allows_all, shows_the_token
from superduper_nb.server_ext.metrics import REQUEST_SECONDS
from superduper_nb.server_ext.schemas import PredictBody, check_path, read_asked
from superduper_nb.server_ext.wire import BSON, JSON, form_of
from superduper_nb.serving import Form
from superduper_nb.serving.forms import reply
from superduper_nb.serving.waiting import answer_of

if TYPE_CHECKING:
    from superduper_nb.server_ext.app import SuperduperApp
    from superduper_nb.server_ext.engine import ServerServices

__all__ = ["DirectWay"]

_OK: Final = ResponseStartLine("HTTP/1.1", 200, "OK")


class DirectWay(Router):
    """Answers the predictions that are nothing special; leaves all others to the routes after it.

    Parameters
    ----------
    app : SuperduperApp
        The extension.
    template : str
        The route, for metrics.
    """

    def __init__(self, app: SuperduperApp, template: str) -> None:
        assert app.serverapp is not None
        self.app, self.web_app = app, app.serverapp.web_app
        self.options = {"name": app.name, "template": template}
        self.seconds = REQUEST_SECONDS.labels(f"POST {template}", 200)

    def find_handler(self, request: HTTPServerRequest, **parameters: Any) -> HTTPMessageDelegate | None:
        """Return who answers a request; None where its headers say that it is something special."""
        services = self.app.engine.ready
        if services is None or not (self._is_plain(request) and self._is_let_in(request)):
            return None
        try:
            names = check_path({name: value.decode() for name, value in parameters["path_kwargs"].items()})
        except (InvalidInputError, UnicodeDecodeError):
            return None
        return _Prediction(self, request, services, names)

    def _is_plain(self, request: HTTPServerRequest) -> bool:
        headers = request.headers
        length = headers.get("Content-Length", "")
        short = length.isdigit() and int(length) <= min(SHORT, self.app.max_body_bytes)
        return request.method == "POST" and short and not request.query and "Origin" not in headers

    def _is_let_in(self, request: HTTPServerRequest) -> bool:
        if request.host not in self.app.hosts:  # it was not checked yet
            return False
        provider, authorizer = self.web_app.settings["identity_provider"], self.web_app.settings["authorizer"]
        return allows_all(authorizer) and shows_the_token(PredictHandler, provider, request)

    def headers(self, request: HTTPServerRequest) -> HTTPHeaders:
        """Return what the handler sends with each answer."""
        if self._headers is None:
            handler = PredictHandler(self.web_app, request, **self.options)
            handler._let_in()
            self._headers = handler._headers
        return self._headers.copy()

    _headers: HTTPHeaders | None = None


class _Prediction(HTTPMessageDelegate):
    """One request: reads the body, has the model applied, writes the answer."""

    def __init__(
        self, way: DirectWay, request: HTTPServerRequest, services: ServerServices, names: dict[str, str]
    ) -> None:
        self._way, self._request, self._services, self._names = way, request, services, names
        self._body = b""

    def data_received(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self._body += chunk

    def finish(self) -> None:
        """Begin to answer; when the client goes away, its work is dropped if that has not begun."""
        task = asyncio.get_running_loop().create_task(self._answer())
        assert self._request.connection is not None
        self._request.connection.set_close_callback(task.cancel)  # type: ignore[attr-defined]

    async def _answer(self) -> None:
        content_type = BSON if BSON in self._request.headers.get("Accept", "") else JSON
        try:
            body = await self._predict("bson" if content_type == BSON else "json")
        except Exception as error:
            self._fail(error)
        else:
            self._write(body, content_type)

    async def _predict(self, form: Form) -> bytes:
        given, app = self._request.headers.get("Content-Type", ""), self._way.app
        form_of(given)
        with app.lanes["predict"].hold():
            body = read_asked(PredictBody, given, self._body)
            asked = self._services.ask(**self._names, body=body, form=form, timeout=app.predict_timeout)
            made = await answer_of(asked)
        return reply(form, made.outputs, version=made.version, took_ms=made.took_ms)

    def _write(self, body: bytes, content_type: str) -> None:
        connection, headers = self._request.connection, self._way.headers(self._request)
        headers["Content-Type"], headers["Content-Length"] = content_type, str(len(body))
        headers["Date"] = _date(int(time.time()))
        assert connection is not None
        connection.write_headers(_OK, headers, body)
        connection.finish()
        self._way.web_app.settings["api_last_activity"] = utcnow()
        self._way.seconds.observe(self._request.request_time())

    def _fail(self, error: Exception) -> None:
        """Have a handler say what went wrong."""
        options = {**self._way.options, "error": error}
        delegate = self._way.web_app.get_handler_delegate(self._request, _Failed, options)
        start = RequestStartLine("POST", self._request.path, self._request.version)
        delegate.headers_received(start, self._request.headers)
        delegate.finish()


class _Failed(PredictHandler):
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
def _date(second: int) -> str:
    return format_timestamp(second)
