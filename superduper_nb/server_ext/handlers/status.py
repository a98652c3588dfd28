"""The state of the engines, for programs and for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web

from superduper_nb._version import __version__
from superduper_nb.errors import ServiceError
from superduper_nb.server_ext.handlers.base import ApiHandler, authorized, operation
from superduper_nb.server_ext.replies import StatusReply
from superduper_nb.server_ext.schemas import NoQuery

__all__ = ["PageHandler", "StatusHandler"]

RESOURCE: Final = "superduper:status"
_PAGE: Final = Path(__file__).parents[1] / "page.html"


class StatusHandler(ApiHandler):
    """``status``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("State, version and address of each component", reply=StatusReply)
    async def get(self, query: NoQuery) -> dict[str, Any]:
        """Answer in every state, also when nothing else does."""
        engine = self.app.engine
        engine.try_again()
        own = {"version": __version__, "pid": os.getpid(), "instance": self.app.instance_id}
        known: dict[str, Any] = {"components": {}}
        problem = engine.failure and str(engine.failure)
        if engine.state == "ready":
            services = await engine.services()
            try:
                known = await self.app.lanes["control"].run(services.status)
            except ServiceError as error:
                problem = str(error)
        return {**known, **own, "state": engine.state, "error": problem}


class PageHandler(ExtensionHandlerMixin, JupyterHandler):
    """A page that shows the status."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    async def get(self) -> None:
        """Send the page; it reads the API by itself."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        await self.finish(_PAGE.read_bytes())
