"""Another process of a training: ``python -m superduper_nb.training.replica``, started by `parallel.Processes`."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from superduper_nb.training.parallel import serve

__all__: list[str] = []


def main() -> None:
    """Serve the channel that is standard input."""
    channel = socket.socket(fileno=os.dup(0))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with suppress(EOFError, ConnectionError):
        serve(channel)


if __name__ == "__main__":
    main()
