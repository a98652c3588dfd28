"""The route table: the server's handlers and the OpenAPI document are both made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jupyter_server.utils import url_path_join
from tornado.routing import PathMatches, Rule
from tornado.web import Application

from superduper_nb.server_ext.direct import DirectPrediction, DirectSearch, DirectWay
from superduper_nb.server_ext.handlers import events, indexes, jobs, meta, models, search, status
from superduper_nb.server_ext.handlers.base import ApiBase, UnknownHandler
from superduper_nb.server_ext.handlers.operations import Operation

if TYPE_CHECKING:
    from superduper_nb.server_ext.app import SuperduperApp

__all__ = ["API", "ROUTES", "Route", "come_first", "handlers"]

API: Final = "/superduper/api/v1/"
_VERBS: Final = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True, slots=True)
class Route:
    """A path below `API`, with names in braces, and who answers it."""

    path: str
    handler: type[ApiBase]

    @property
    def pattern(self) -> str:
        """The path as a regular expression."""
        named = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path))
        return f"{API}{named}"

    @property
    def operations(self) -> dict[str, Operation]:
        """The verbs it has."""
        verbs = {verb: getattr(self.handler, verb) for verb in _VERBS}
        return {verb: method.operation for verb, method in verbs.items() if hasattr(method, "operation")}


ROUTES: Final = (  # tried in this order, so those that are asked for most stand first
    Route("models/{database}/{model}/predict", models.PredictHandler),
    Route("search", search.SearchHandler),
    Route("status", status.StatusHandler),
    Route("databases", status.DatabasesHandler),
    Route("indexes", indexes.IndexesHandler),
    Route("indexes/{database}/{collection}/{index}", indexes.IndexHandler),
    Route("indexes/{database}/{collection}/{index}/refresh", indexes.IndexRefreshHandler),
    Route("models/{database}", models.ModelsHandler),
    Route("models/{database}/{model}/stream", models.StreamHandler),
    Route("models/{database}/{model}/load", models.LoadHandler),
    Route("models/{database}/{model}/unload", models.UnloadHandler),
    Route("jobs", jobs.JobsHandler),
    Route("jobs/{job}", jobs.JobHandler),
    Route("jobs/{job}/logs", jobs.JobLogsHandler),
    Route("jobs/{job}/cancel", jobs.JobCancelHandler),
    Route("jobs/{job}/retry", jobs.JobRetryHandler),
    Route("events", events.EventsHandler),
    Route("openapi.json", meta.OpenApiHandler),
    Route("metrics", meta.MetricsHandler),
)


def come_first(app: SuperduperApp, application: Application) -> None:
    """Have the API's paths tried before those of JupyterLab and others: ten of a request's hundred microseconds."""
    rules, often = application.default_router.rules, (DirectPrediction, DirectSearch)
    rules.sort(key=lambda rule: not any(own.target is ROUTES[0].handler for own in getattr(rule.target, "rules", ())))
    for route, kind in reversed(list(zip(ROUTES, often, strict=False))):
        pattern = url_path_join(application.settings["base_url"], route.pattern)
        rules.insert(0, Rule(PathMatches(pattern), DirectWay(app, route.path, route.handler, kind)))


def handlers() -> list[tuple[Any, ...]]:
    """Return what the application takes: pattern, handler, arguments."""
    own = [(route.pattern, route.handler, {"template": route.path}) for route in ROUTES]
    unknown = (r"/superduper/api/.*", UnknownHandler, {"template": "unknown"})
    return [*own, unknown, (r"/superduper", status.PageHandler)]
