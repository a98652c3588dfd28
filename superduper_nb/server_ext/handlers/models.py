"""The model server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tornado import web

from superduper_nb.server_ext.handlers.base import ApiHandler, Work, authorized, operation
from superduper_nb.server_ext.replies import ModelsReply, PredictReply
from superduper_nb.server_ext.schemas import NoBody, NoQuery, PredictBody
from superduper_nb.server_ext.wire import decode_objects, encode_outputs

__all__ = ["ModelsHandler", "PredictHandler"]

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
    def post(self, work: Work[PredictBody, NoQuery]) -> Mapping[str, Any]:
        """Predict; an input that fails alone does not fail the others."""
        inputs = decode_objects(work.body.inputs)
        made = work.services.predict(work.path["database"], work.path["model"], inputs, work.body.version)
        outputs = encode_outputs(made.outputs, work.content_type)
        return {"outputs": outputs, "version": made.version, "took_ms": made.took_ms}
