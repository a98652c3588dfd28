"""The extension of the Jupyter server, and ``jupyter superduper``: that server, headless, with a status page."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jupyter_core.paths import jupyter_runtime_dir, secure_write
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Dict, Float, Int, Unicode, default

from superduper_nb._version import __version__
from superduper_nb.errors import ConfigError

if TYPE_CHECKING:
    from jupyter_server.auth.identity import User

    from superduper_nb.config import Config
    from superduper_nb.server_ext.engine import Engine, ServerServices
    from superduper_nb.server_ext.events import EventLog
    from superduper_nb.server_ext.lanes import Lane, LaneName

__all__ = ["SuperduperApp", "main"]

_JOBS_REPORT_WITHIN_S: Final = 60.0


def build_services(config: Config, events: EventLog, loop: asyncio.AbstractEventLoop) -> ServerServices:
    """Start the engines of this server; blocks, so not in its loop."""
    from superduper_nb.services import LocalServices

    return LocalServices(config, on_event=events.publish, loop=loop)


class SuperduperApp(ExtensionApp):
    """MongoDB, Dask workers, search and models, run by the notebook server."""

    name = "superduper"
    description = "Run MongoDB, Dask workers, vector search and a model server behind a Jupyter server."
    extension_url = "/superduper"
    load_other_extensions = True
    static_paths = [str(Path(__file__).parent / "static")]  # noqa: RUF012  (a trait of Jupyter's)
    aliases = {**ExtensionApp.aliases, "config": "SuperduperApp.cluster_file"}  # noqa: RUF012  (as traitlets has it)
    """Of the command only: in ``jupyter lab``, ``--config`` is Jupyter's own."""
    examples = """
jupyter superduper                          # everything on this machine
jupyter superduper --config config.json     # as the file says
"""

    cluster_file = Unicode(
        "",
        help="Path of the cluster's config.json. "
        "Default: SUPERDUPER_CONFIG, or superduper_nb/config.json in Jupyter's config folder.",
    ).tag(config=True)
    cluster = Dict(
        help="Settings of config.json that win over file and environment: {'mongodb': {'uri': 'mongodb://…'}}, say."
    ).tag(config=True)
    max_body_bytes = Int(32 * 2**20, min=1, help="Longest body of a request.").tag(config=True)
    search_threads = Int(8, min=1, help="Searches that run at a time.").tag(config=True)
    max_predictions = Int(1024, min=1, help="Predictions in work at a time; further ones get 429.").tag(config=True)
    max_waiting = Int(64, min=0, help="Searches that may wait for a thread; further ones get 429.").tag(config=True)
    search_timeout = Float(30.0, min=0.1, help="Seconds after which a search gets 504.").tag(config=True)
    predict_timeout = Float(60.0, min=0.1, help="Seconds after which a prediction gets 504.").tag(config=True)
    ready_timeout = Float(10.0, min=0.0, help="Seconds a request waits while engines start.").tag(config=True)
    events_kept = Int(10_000, min=1, help="Job and index events held for who asks later.").tag(config=True)

    engine: Engine
    events: EventLog
    lanes: dict[LaneName, Lane]
    instance_id: str
    hosts: set[str]
    """Names of this server that were checked and found to be its own."""
    program: User | None = None
    """Who calls with the server's token, and is no browser."""
    _loop: asyncio.AbstractEventLoop
    _runtime_file: Path | None = None

    @default("open_browser")
    def _default_open_browser(self) -> bool:
        assert self.serverapp is not None
        return bool(self.serverapp.config["ServerApp"].get("open_browser", False))

    def initialize_settings(self) -> None:
        """Make what the handlers use; nothing is started yet."""
        from superduper_nb.server_ext.engine import Engine
        from superduper_nb.server_ext.events import EventLog
        from superduper_nb.server_ext.lanes import Lane

        self.instance_id = uuid.uuid4().hex
        self.hosts = set()
        self.events = EventLog(self.events_kept)
        sizes: dict[LaneName, tuple[int, int, float]] = {
            "search": (self.search_threads, self.max_waiting, self.search_timeout),
            "predict": (1, self.max_predictions - 1, self.predict_timeout),  # the thread only reads long bodies
            "control": (4, self.max_waiting, 60.0),
        }
        self.lanes = {
            name: Lane(name, threads=threads, waiting=waiting, timeout=timeout)
            for name, (threads, waiting, timeout) in sizes.items()
        }
        self.engine = Engine(self._build, on_ready=self._publish, log=self.log)

    def initialize_handlers(self) -> None:
        """Add the routes."""
        from superduper_nb.server_ext.routes import handlers

        self.handlers.extend(handlers())

    @property
    def logs_requests(self) -> bool:
        """Say whether requests that succeed are written to the log."""
        return any(handler.level <= logging.DEBUG for handler in self.log.handlers)

    def load_config(self) -> Config:
        """Return the cluster's settings: traitlets, then environment, then file.

        Raises
        ------
        ConfigError
            Names file and key.
        """
        from superduper_nb.config import Config

        return Config.load(self.cluster_file or None, **self.cluster)

    def _build(self) -> ServerServices:
        return build_services(self.load_config(), self.events, self._loop)

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        from superduper_nb.server_ext.routes import come_first

        come_first(self, serverapp.web_app)
        self._loop = asyncio.get_running_loop()
        self.engine.start()

    async def stop_extension(self) -> None:
        """Close the engines; when this returns, no process of theirs is left."""
        if not hasattr(self, "engine"):  # loading failed before it was made
            return
        for lane in self.lanes.values():
            lane.close()
        self._unpublish()
        await self.engine.stop()
        self._unpublish()  # by a start that was under way

    def current_activity(self) -> dict[str, int] | None:
        """Keep the server from being shut down as idle while requests are in work or jobs report progress."""
        busy: dict[str, int] = {name: lane.busy for name, lane in self.lanes.items() if lane.busy}
        if self.events.quiet_s < _JOBS_REPORT_WITHIN_S:
            busy["jobs"] = 1
        return busy or None

    def _publish(self, services: ServerServices) -> None:
        """Tell this user's kernels which MongoDB to use, by a file that only they can read."""
        assert self.serverapp is not None
        info = {
            "url": self.serverapp.connection_url,
            "pid": os.getpid(),
            "instance": self.instance_id,
            "version": __version__,
            "mongodb_uri": services.mongo_uri,
        }
        self._runtime_file = Path(jupyter_runtime_dir()) / f"superduper-{os.getpid()}.json"
        draft = self._runtime_file.with_suffix(".draft")
        draft.unlink(missing_ok=True)
        with secure_write(str(draft)) as file:
            json.dump(info, file)
        draft.replace(self._runtime_file)

    def _unpublish(self) -> None:
        if self._runtime_file is not None:
            self._runtime_file.unlink(missing_ok=True)

    @classmethod
    def initialize_server(cls, *args: Any, **options: Any) -> ServerApp:
        """Refuse a wrong config.json before anything is started."""
        serverapp: ServerApp = super().initialize_server(*args, **options)  # type: ignore[no-untyped-call]
        point = serverapp.extension_manager.extension_points[cls.name]
        try:
            point.app.load_config()
        except ConfigError as error:
            print(f"jupyter superduper: {error}", file=sys.stderr)
            serverapp.exit(1)
        return serverapp


main = launch_new_instance = SuperduperApp.launch_instance
