"""A bare tornado handler before our own batcher and model process: the limit of a notebook server with these."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial

import tornado.web

from superduper_nb.services.child import current_version, load_model
from superduper_nb.serving import ModelServer


class Handler(tornado.web.RequestHandler):
    """JSON in, JSON out."""

    async def post(self) -> None:
        """Predict."""
        inputs = json.loads(self.request.body)["inputs"]
        made = await asyncio.wrap_future(models.submit("bench", os.environ["BENCH_MODEL"], inputs, form="json"))
        self.set_header("Content-Type", "application/json")
        self.finish(b'{"outputs": %b}' % made.outputs)


async def main() -> None:
    """Serve until killed."""
    global models
    uri = os.environ["BENCH_URI"]
    models = ModelServer(partial(load_model, uri), partial(current_version, uri), loop=asyncio.get_running_loop())
    application = tornado.web.Application([("/predict", Handler)], log_function=lambda handler: None)
    application.listen(int(os.environ["BENCH_PORT"]), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
