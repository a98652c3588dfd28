"""About the API itself: its description, and metrics of its use."""

from __future__ import annotations

from typing import Any

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler
from superduper_nb.server_ext.handlers.operations import authorized, operation
from superduper_nb.server_ext.metrics import CONTENT_TYPE_LATEST, exposition
from superduper_nb.server_ext.replies import OpenApiReply
from superduper_nb.server_ext.schemas import NoQuery, OpenApiQuery

__all__ = ["MetricsHandler", "OpenApiHandler"]


class OpenApiHandler(ApiHandler):
    """``openapi.json``."""

    @web.authenticated
    @authorized(action="read", resource="superduper:openapi")
    @operation("This document", query=OpenApiQuery, reply=OpenApiReply)
    async def get(self, query: OpenApiQuery) -> dict[str, Any]:
        """Describe exactly the routes there are; for a database, its models one by one."""
        from superduper_nb.server_ext.openapi import document

        if query.db is None:
            return document(self.base_url)
        services = await self.app.engine.services(self.app.ready_timeout)
        models = await self.app.lanes["control"].run(lambda: services.models(str(query.db)))
        return document(self.base_url, query.db, models)


class MetricsHandler(ApiHandler):
    """``metrics``."""

    _track_activity = False

    @web.authenticated
    @authorized(action="read", resource="superduper:metrics")
    @operation("Metrics for Prometheus", reply=CONTENT_TYPE_LATEST)
    async def get(self, query: NoQuery) -> bytes:
        """Expose them; those of models and indexes where the engines are up."""
        if self.app.engine.state != "ready":
            return exposition()
        services = await self.app.engine.services()

        def figures() -> bytes:
            return exposition(*services.model_figures(), services.index_figures())

        return await self.app.lanes["control"].run(figures)
