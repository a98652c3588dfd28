"""The model server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.failures import error_body
from superduper_nb.server_ext.handlers.base import ApiHandler, Work, authorized, operation
from superduper_nb.server_ext.replies import LoadReply, ModelsReply, PredictReply, UnloadReply
from superduper_nb.server_ext.schemas import LoadBody, NoBody, NoQuery, PredictBody, StreamBody
from superduper_nb.server_ext.streaming import EVENTS, last, piece
from superduper_nb.server_ext.wire import BSON, dump
from superduper_nb.serving import Form
from superduper_nb.serving.forms import reply

__all__ = ["LoadHandler", "ModelsHandler", "PredictHandler", "StreamHandler", "UnloadHandler"]

RESOURCE: Final = "superduper:models"


class ModelsHandler(ApiHandler):
    """``models/<database>``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("List the models of a database", reply=ModelsReply, lane="control")
    def get(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """List them."""
        return {"models": work.services.models(work.path["database"])}


class PredictHandler(ApiHandler):
    """``models/<database>/<model>/predict``: it runs the code of a model, so reading is not enough to be allowed it."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Apply a model", body=PredictBody, reply=PredictReply, lane="predict")
    async def post(self, work: Work[PredictBody, NoQuery]) -> bytes:
        """Predict, together with what others ask of the model at the moment."""
        form = _form(work)
        asked = work.services.submit(
            work.path["database"],
            work.path["model"],
            work.body.inputs,
            version=work.body.version,
            errors=work.body.errors,
            form=form,
            timeout=self.app.predict_timeout,
        )
        made = await asyncio.wrap_future(asked)
        return reply(form, made.outputs, version=made.version, took_ms=made.took_ms)


class StreamHandler(ApiHandler):
    """``models/<database>/<model>/stream``."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Apply a model that yields its output", body=StreamBody, reply=EVENTS, lane="predict")
    async def post(self, work: Work[StreamBody, NoQuery]) -> AsyncGenerator[bytes]:
        """Send pieces as the model yields them; when the client goes away, the model's generator is closed."""
        form, began = _form(work), False
        stream = work.services.stream(
            work.path["database"],
            work.path["model"],
            work.body.input,
            version=work.body.version,
            form=form,
            timeout=self.app.predict_timeout,
        )
        try:
            while not stream.done:
                part = await asyncio.wrap_future(stream.part())
                began = True
                yield b"".join(piece(form, written) for written in part.pieces)
            yield last(form, "end", {"version": stream.version})
        except Exception as error:
            if not began:
                raise
            answer = self.translated(error)
            yield last(form, "error", error_body(answer.status_code, answer))
        finally:
            stream.close()


class LoadHandler(ApiHandler):
    """``models/<database>/<model>/load``."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Load a model before it is needed", body=LoadBody, reply=LoadReply, lane="predict")
    async def post(self, work: Work[LoadBody, NoQuery]) -> bytes:
        """Load it; with an example, apply it once."""
        examples = [] if work.body.example is None else [work.body.example]
        database, model = work.path["database"], work.path["model"]
        asked = work.services.submit(database, model, examples, form="bson", timeout=self.app.predict_timeout)
        made = await asyncio.wrap_future(asked)
        return dump({"version": made.version, "took_ms": made.took_ms}, work.content_type)


class UnloadHandler(ApiHandler):
    """``models/<database>/<model>/unload``."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Drop a model from memory", reply=UnloadReply, lane="control")
    def post(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """Drop it; the next request loads it again."""
        work.services.unload_model(work.path["database"], work.path["model"])
        return {"model": work.path["model"]}


def _form(work: Work[Any, Any]) -> Form:
    return "bson" if work.content_type == BSON else "json"
