"""The OpenAPI 3.1 document, made from the route table and the models: it can't say anything else than what is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from superduper_nb._version import __version__
from superduper_nb.server_ext.handlers.operations import Operation
from superduper_nb.server_ext.replies import ErrorReply, PredictReply
from superduper_nb.server_ext.routes import API, ROUTES, Route
from superduper_nb.server_ext.schemas import PATH_PARAMETERS, NoBody, PredictBody
from superduper_nb.server_ext.wire import BSON, JSON

__all__ = ["document"]

_REF: Final = "#/components/schemas/{model}"
_ABOUT: Final = (
    "Search, models and jobs of a notebook server. Bodies are MongoDB Extended JSON v2 (relaxed) or BSON, by "
    "Content-Type and Accept; errors are always JSON. Tokens are Jupyter's: `Authorization: token …`."
)


def document(
    base_url: str = "/", database: str | None = None, registered: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the document for a server with this base URL.

    Parameters
    ----------
    database, registered
        A database and the models in it: their predictions are described with the types of inputs and outputs.
    """
    operations = [operation for route in ROUTES for operation in route.operations.values()]
    models: set[type[BaseModel]] = {ErrorReply, *(operation.body for operation in operations)}
    models |= {operation.reply for operation in operations if not isinstance(operation.reply, str)}
    ordered = sorted(models, key=lambda model: model.__name__)
    which: list[tuple[type[BaseModel], Literal["validation"]]] = [(model, "validation") for model in ordered]
    _, schemas = models_json_schema(which, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "superduper_nb", "version": __version__, "description": _ABOUT},
        "servers": [{"url": base_url.rstrip("/") + API.rstrip("/")}],
        "security": [{"token": []}],
        "paths": {f"/{route.path}": _path(route) for route in ROUTES} | _of_models(database, registered),
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "Authorization"}},
        },
    }


def _of_models(database: str | None, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {f"/models/{database}/{model['id']}/predict": {"post": _of_model(model)} for model in models}


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Describe predictions of one model, as far as its types are known."""
    types = dict(model.get("signature", {}))
    if model.get("type") == "vector":
        types["output"] = {"type": "array", "items": {"type": "number"}}
    inputs, outputs = ({"type": "array", "items": types.get(name, {})} for name in ("input", "output"))
    asked, answered = PredictBody.model_json_schema(), PredictReply.model_json_schema()
    asked["properties"]["inputs"] |= inputs
    answered["properties"]["outputs"] |= outputs
    return {
        "operationId": f"predict_{model['id']}",
        "summary": f"Apply {model['id']}, version {model['version']} at the moment",
        "tags": ["models"],
        "requestBody": {"required": True, "content": {JSON: {"schema": asked}}},
        "responses": {
            "200": {"description": "Done.", "content": {JSON: {"schema": answered}}},
            "default": {"description": "4xx or 5xx.", "content": {JSON: {"schema": _ref(ErrorReply)}}},
        },
    }


def _path(route: Route) -> dict[str, Any]:
    names = [
        {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name].json_schema()}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    verbs = {verb: _operation(verb, route, operation) for verb, operation in route.operations.items()}
    return {**({"parameters": names} if names else {}), **verbs}


def _operation(verb: str, route: Route, operation: Operation) -> dict[str, Any]:
    words = re.findall(r"[A-Za-z]+", route.path)
    described: dict[str, Any] = {
        "operationId": "_".join([verb, *words]),
        "summary": operation.summary,
        "tags": [words[0]],
        "responses": {
            "200": {"description": "Done.", "content": _content(operation.reply) | _parts(operation)},
            "default": {"description": "4xx or 5xx.", "content": {JSON: {"schema": _ref(ErrorReply)}}},
        },
    }
    if parameters := _parameters(operation.query):
        described["parameters"] = parameters
    if operation.body is not NoBody:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    schema = query.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": property}
        for name, property in schema.get("properties", {}).items()
    ]


def _content(model: type[BaseModel] | str) -> dict[str, Any]:
    if isinstance(model, str):
        return {model: {"schema": {"type": "string"}}}
    return {JSON: {"schema": _ref(model)}, BSON: {"schema": _ref(model)}}


def _parts(operation: Operation) -> dict[str, Any]:
    """Describe the other way to send an answer in parts: BSON documents one after the other."""
    return {BSON: {}} if operation.yields else {}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
