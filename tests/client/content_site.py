"""A web site on loopback whose pages a test writes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Page = bytes | tuple[int, dict[str, str]] | Callable[[], bytes]


class Site:
    """Serves `pages`: bytes, ``(status, headers)``, or a function that makes the bytes when it is asked."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | list[Page]] = {}
        self.asked: Counter[str] = Counter()
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    def content(self, path: str, type: str = "bytes") -> dict[str, Any]:
        return {"_content": {"url": self.url(path), "type": type}}

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.asked[handler.path] += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            page = self.pages.get(handler.path, (404, {}))
            if isinstance(page, list):
                page = page.pop(0) if len(page) > 1 else page[0]
        body = page if isinstance(page, bytes) else page() if callable(page) else b""
        with self._lock:
            self._now -= 1
        status, headers = page if isinstance(page, tuple) else (200, {})
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
