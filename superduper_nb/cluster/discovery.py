"""How a kernel finds its own notebook server.

In this order: the URL given (argument, environment, config file); JupyterHub's; the server that is this kernel's
parent; the one running server that owns this kernel. Each is asked for its status before it is used, so that a file
left behind, or a server without our extension, is not taken for one. `jupyter_server` is not imported: that would take
two seconds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from superduper_nb.errors import DeadlineError, ServerUnavailableError
from superduper_nb.transport import Answer, Transport

if TYPE_CHECKING:
    from superduper_nb.config import Config

__all__ = ["Server", "find_server"]

log = logging.getLogger(__name__)

_STATUS: Final = "superduper/api/v1/status"
_ANSWER_S: Final = 5.0
_START_S: Final = 90.0
_POLL_S: Final = 0.2
_PAGES: Final = re.compile(r"/(lab|tree|notebooks|superduper)(/.*)?$")


@dataclass(frozen=True, slots=True)
class Server:
    """A notebook server with our extension.

    Attributes
    ----------
    url : str
        Its base URL.
    token : str or None
        What it asks for.
    how : str
        How it was found, for users to read.
    mongodb_uri : str or None
        The MongoDB it uses, where it runs on this machine under this user; else the kernel's own settings must say.
    """

    url: str
    token: str | None = field(repr=False)
    how: str
    mongodb_uri: str | None = field(default=None, repr=False)


class _UnusableError(Exception):
    """A candidate is not it; the text says why."""


def find_server(config: Config) -> Server | None:
    """Find the notebook server that this process should use.

    Returns
    -------
    Server or None
        None where there is none, or where ``remote`` is False.

    Raises
    ------
    ServerUnavailableError
        The URL given does not lead to one; or the own server is there but could not start its engines; or there is none
        and ``remote`` is True.
    """
    if config.remote is False:
        return None
    reasons = []
    for candidate in _candidates(config):
        try:
            return _verified(candidate)
        except _UnusableError as error:
            reasons.append(str(error))
            log.info("%s", error)
            if config.server:
                raise ServerUnavailableError(str(error)) from None
    if config.remote:
        why = " ".join(reasons) or "No notebook server was found that started this process."
        raise ServerUnavailableError(f"{why} Give url= and token=, or leave remote=True out to run everything here.")
    return None


def _candidates(config: Config) -> Iterator[Server]:
    if config.server:
        yield _given(config.server, config.token.get_secret_value() if config.token else None)
        return
    yield from _hub()
    yield from _parent()
    yield from _owner_of_this_kernel()


def _given(url: str, token: str | None) -> Server:
    """Take a URL as people copy it: that of a page, with the token in it."""
    parts = urlsplit(url)
    token = token or next(iter(parse_qs(parts.query).get("token", [])), None)
    base = urlunsplit((parts.scheme, parts.netloc, _PAGES.sub("/", parts.path), "", ""))
    return Server(base, token, "the URL given")


def _hub() -> Iterator[Server]:
    """Yield JupyterHub's single-user server: its token is in the environment, none in the runtime file."""
    url, token = os.environ.get("JUPYTERHUB_SERVICE_URL"), os.environ.get("JUPYTERHUB_API_TOKEN")
    if url and token:
        yield Server(_reachable(url), token, "JupyterHub's server of this user")


def _parent() -> Iterator[Server]:
    """Yield the server whose child this kernel is (on Windows the variable holds a handle, no process id)."""
    pid = os.environ.get("JPY_PARENT_PID", "")
    if pid.isdigit() and sys.platform != "win32":
        yield from _running(_runtime_dir() / f"jpserver-{pid}.json", "the server that started this kernel")


def _owner_of_this_kernel() -> Iterator[Server]:
    kernel = _kernel_id()
    if kernel is None:
        return
    for path in sorted(_runtime_dir().glob("jpserver-*.json")):
        for server in _running(path, "the running server that owns this kernel"):
            if _owns(server, kernel):
                yield server


def _running(path: Path, how: str) -> Iterator[Server]:
    """Yield the server that a runtime file describes, if its process lives."""
    import psutil

    info = _read(path)
    if not info or not psutil.pid_exists(int(info.get("pid", -1))):
        return
    if socket_path := info.get("sock"):
        url = f"http+unix://{quote(socket_path, safe='')}{info.get('base_url', '/')}"
    else:
        url = _reachable(str(info["url"]))
    yield Server(url, info.get("token") or os.environ.get("JUPYTERHUB_API_TOKEN"), how)


def _reachable(url: str) -> str:
    """Replace an address that means "all of this machine's" by one that can be called."""
    parts = urlsplit(url)
    if parts.hostname in (None, "", "0.0.0.0", "::", "*"):
        port = f":{parts.port}" if parts.port else ""
        return urlunsplit((parts.scheme or "http", f"127.0.0.1{port}", parts.path, "", ""))
    return url


def _kernel_id() -> str | None:
    """Return this kernel's id; None where this process is no kernel."""
    if "ipykernel" not in sys.modules:
        return None
    from ipykernel.connect import get_connection_file

    try:
        name = Path(get_connection_file()).name
    except RuntimeError:
        return None
    match = re.fullmatch(r"kernel-(.+)\.json", name)
    return match and match[1]


def _owns(server: Server, kernel: str) -> bool:
    try:
        answer = _get(server, "api/kernels")
        return answer.status == 200 and any(known["id"] == kernel for known in json.loads(answer.body))
    except (ServerUnavailableError, DeadlineError, ValueError, LookupError, TypeError):
        return False


def _verified(server: Server) -> Server:
    """Return the candidate with what is known of its MongoDB, once it is ready."""
    status = _wait_until_started(server)
    if status.get("state") == "failed":
        raise ServerUnavailableError(f"The notebook server at {server.url} runs, but: {status.get('error')}")
    return replace(server, mongodb_uri=_mongodb_uri(status))


def _wait_until_started(server: Server) -> dict[str, Any]:
    deadline = time.monotonic() + _START_S
    while True:
        status = _status(server)
        if status.get("state") != "starting":
            return status
        if time.monotonic() > deadline:
            raise ServerUnavailableError(f"The notebook server at {server.url} is still starting after {_START_S:g} s.")
        time.sleep(_POLL_S)


def _status(server: Server) -> dict[str, Any]:
    try:
        answer = _get(server, _STATUS)
    except (ServerUnavailableError, DeadlineError) as error:
        raise _UnusableError(str(error)) from None
    if answer.status in (401, 403):
        refused = "the token" if server.token else "requests without a token"
        raise _UnusableError(
            f"The notebook server at {server.url} refuses {refused}: set SUPERDUPER_TOKEN, or start it with a token."
        )
    if answer.status == 200:
        try:
            status = json.loads(answer.body)
        except ValueError:
            status = None
        if isinstance(status, dict) and "state" in status:
            return status
    raise _UnusableError(
        f"What answers at {server.url} is no notebook server with superduper_nb enabled: install it in the server's "
        "environment (jupyter server extension list shows it)."
    )


def _mongodb_uri(status: dict[str, Any]) -> str | None:
    """Read the URI from the server's private file; the server's random ``instance`` proves that it is this one's."""
    info = _read(_runtime_dir() / f"superduper-{status.get('pid')}.json")
    if info and info.get("instance") == status.get("instance"):
        return info.get("mongodb_uri")
    return None


def _get(server: Server, path: str) -> Answer:
    transport = Transport(server.url, server.token, connections=1)
    try:
        return transport.request("GET", path, query={"no_track_activity": "1"}, timeout=_ANSWER_S)
    finally:
        transport.close()


def _runtime_dir() -> Path:
    from jupyter_core.paths import jupyter_runtime_dir

    return Path(jupyter_runtime_dir())


def _read(path: Path) -> dict[str, Any] | None:
    """Read a runtime file; None where it is gone or only half written."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, dict) else None
