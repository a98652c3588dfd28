"""The model server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.failures import error_body
from superduper_nb.server_ext.handlers.base import ApiHandler
from superduper_nb.server_ext.handlers.operations import Work, authorized, operation
from superduper_nb.server_ext.replies import LoadReply, ModelsReply, PredictReply, UnloadReply
from superduper_nb.server_ext.schemas import LoadBody, NoBody, NoQuery, PredictBody, StreamBody
from superduper_nb.server_ext.streaming import EVENTS, last, piece
from superduper_nb.server_ext.wire import BSON, dump
from superduper_nb.serving import Body, Form, Prediction, UnreadBody
from superduper_nb.serving.forms import reply
from superduper_nb.serving.waiting import answer_of

__all__ = ["LoadHandler", "ModelsHandler", "PredictHandler", "StreamHandler", "UnloadHandler"]

RESOURCE: Final = "superduper:models"

Asked = Body | UnreadBody


class ModelsHandler(ApiHandler):
    """``models/<database>``."""

    @web.authenticated
    @authorized(action="read", resource=RESOURCE)
    @operation("List the models of a database", reply=ModelsReply, lane="control")
    def get(self, work: Work[NoBody, NoQuery]) -> Mapping[str, Any]:
        """List them."""
        return {"models": work.services.models(work.path["database"])}


class _Asking(ApiHandler):
    async def asked(self, work: Work[Asked, NoQuery], form: Form) -> Prediction:
        """Wait for what the model server answers to a request."""
        name, timeout = (work.path["database"], work.path["model"]), self.app.predict_timeout
        return await answer_of(work.services.ask(*name, work.body, form=form, timeout=timeout))


class PredictHandler(_Asking):
    """``models/<database>/<model>/predict``: it runs the code of a model, so reading is not enough to be allowed it."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Apply a model", body=PredictBody, reply=PredictReply, lane="predict")
    async def post(self, work: Work[Asked, NoQuery]) -> bytes:
        """Predict, together with what others ask of the model at the moment."""
        form = _form(work)
        made = await self.asked(work, form)
        return reply(form, made.outputs, version=made.version, took_ms=made.took_ms)


class StreamHandler(ApiHandler):
    """``models/<database>/<model>/stream``."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Apply a model that yields its output", body=StreamBody, reply=EVENTS, lane="predict")
    async def post(self, work: Work[Asked, NoQuery]) -> AsyncGenerator[bytes]:
        """Send pieces as the model yields them; when the client goes away, the model's generator is closed."""
        form, began = _form(work), False
        name, timeout = (work.path["database"], work.path["model"]), self.app.predict_timeout
        stream = work.services.open(*name, work.body, form=form, timeout=timeout)
        try:
            while not stream.done:
                part = await answer_of(stream.part())
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


class LoadHandler(_Asking):
    """``models/<database>/<model>/load``."""

    @web.authenticated
    @authorized(action="execute", resource="superduper:predict")
    @operation("Load a model before it is needed", body=LoadBody, reply=LoadReply, lane="predict")
    async def post(self, work: Work[Asked, NoQuery]) -> bytes:
        """Load it; with an example, apply it once."""
        made = await self.asked(work, "bson")
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
