"""The state of the engines, for programs and for people."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from tornado import web

from superduper_nb._version import __version__
from superduper_nb.errors import ServiceError
from superduper_nb.server_ext.handlers.base import ApiHandler
from superduper_nb.server_ext.handlers.operations import Work, authorized, operation
from superduper_nb.server_ext.replies import DatabasesReply, StatusReply
from superduper_nb.server_ext.schemas import NoBody, NoQuery

__all__ = ["DatabasesHandler", "PageHandler", "StatusHandler"]

RESOURCE: Final = "superduper:status"
_PAGE: Final = Path(__file__).parents[1] / "page.html"
_POLICY: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; " + "; ".join(
    f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")
)


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


class DatabasesHandler(ApiHandler):
    """``databases``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource="superduper:databases")
    @operation("List the databases that hold components or jobs", reply=DatabasesReply, lane="control")
    def get(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """List them."""
        return {"databases": work.services.databases()}


class PageHandler(ExtensionHandlerMixin, JupyterHandler):
    """A page that shows the status."""

    @property
    def content_security_policy(self) -> str:
        """As for the rest of Jupyter, and nothing but its own script, style and data."""
        return f"{super().content_security_policy}; {_POLICY}"

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    async def get(self) -> None:
        """Send the page; it reads the API by itself."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        await self.finish(_PAGE.read_bytes())
