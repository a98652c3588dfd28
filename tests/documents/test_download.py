"""SAFETY.md B9: the downloader against hostile URLs, hosts and servers (a local one, which the policy names)."""

import contextlib
import gzip
import os
import pickle
import socket
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fsspec.implementations.memory import MemoryFileSystem

from superduper_nb.documents.download import DownloadError, DownloadPolicy, check_url, fetch
from superduper_nb.errors import InvalidInputError, ServiceError

Answer = Callable[[BaseHTTPRequestHandler], None]
MEGABYTE = 2**20


class Web:
    """A web server on loopback, whose answers a test writes."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}))
                self.close_connection = True
                with contextlib.suppress(OSError):  # the other side is free to leave
                    web.answers[self.path](self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def url(self, answer: Answer, path: str = "/x") -> str:
        self.answers[path] = answer
        return f"http://{self.host}{path}"

    def close(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()  # waits for the threads of the answers
        self.thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


@pytest.fixture
def policy(web: Web) -> DownloadPolicy:
    return DownloadPolicy(trusted_hosts=frozenset({web.host}), max_bytes=MEGABYTE)


def answer(body: bytes = b"data", status: int = 200, length: int | None = None, **headers: str) -> Answer:
    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Connection", "close")
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)

    return write


def redirect(location: str, status: int = 302) -> Answer:
    return answer(b"", status, Location=location)


def failure(url: Any, policy: DownloadPolicy) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        fetch(url, policy=policy)
    return caught.value


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Addresses that were connected to; no connection is made."""
    made: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        made.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("urllib3.util.connection.create_connection", refuse)
    return made


def test_what_a_server_sends_arrives(web: Web, policy: DownloadPolicy) -> None:
    url = web.url(answer(b"\x00\xff" * 100_000))
    assert fetch(url, policy=policy) == b"\x00\xff" * 100_000
    path, headers = web.requests[0]
    assert (path, headers["accept-encoding"], headers["user-agent"]) == ("/x", "identity", "superduper-nb")
    assert headers["host"] == web.host


PRIVATE = [
    *("127.0.0.1", "127.1", "0x7f000001", "2130706433", "017700000001", "localhost", "[::1]", "[::ffff:127.0.0.1]"),
    *("0.0.0.0", "[::]", "169.254.169.254", "[fe80::1]", "[fd00::1]", "10.0.0.1", "172.16.0.1", "192.168.0.1"),
    *("100.64.0.1", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "[ff02::1]", "255.255.255.255"),
    *("1.1.1.1@127.0.0.1", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:0:127.0.0.1]", "127.0.0.1."),
]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", PRIVATE)
def test_row_67_no_connection_to_a_private_address(host: str, scheme: str, connections: list[tuple[str, int]]) -> None:
    error = failure(f"{scheme}://{host}/", DownloadPolicy())
    # "network": systems differ in the spellings that they resolve.
    assert error.kind in {"address", "url", "network"}
    assert connections == []


def test_row_67_a_public_address_is_connected_to(connections: list[tuple[str, int]]) -> None:
    error = failure("http://1.1.1.1/", DownloadPolicy())
    assert (error.kind, error.transient) == ("network", True)
    assert connections == [("1.1.1.1", 80)], "so the table above can fail"


def test_row_67_only_the_very_host_and_port_are_trusted(web: Web, connections: list[tuple[str, int]]) -> None:
    policy = DownloadPolicy(trusted_hosts=frozenset({"127.0.0.1:1"}))
    for url in (f"http://{web.host}/", "http://127.0.0.1/", "http://127.0.0.1:1@127.0.0.1:2/", "http://127.0.0.1:11/"):
        assert failure(url, policy).kind in {"address", "url"}
    assert connections == []
    failure("http://127.0.0.1:1/", policy)
    assert connections == [("127.0.0.1", 1)]


def test_row_67_no_proxy_is_asked(web: Web, policy: DownloadPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(web.url(answer()), policy=policy) == b"data"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("http://169.254.169.254/latest/meta-data", "address"),
        ("http://10.0.0.1/", "address"),
        ("http://localhost:1/", "address"),
        ("//127.0.0.1:1/", "address"),
        ("file:///etc/passwd", "scheme"),
        ("ftp://example.org/", "scheme"),
        ("s3://bucket/key", "scheme"),
        ("http://user:secret@1.1.1.1/", "url"),
        ("http://", "redirect"),
    ],
)
def test_row_68_redirects_are_checked_like_urls(web: Web, policy: DownloadPolicy, target: str, kind: str) -> None:
    permissive = replace(policy, roots=("/etc", "s3://bucket"))
    error = failure(web.url(redirect(target)), permissive)
    assert (error.kind, error.transient) == (kind, False)
    assert "secret" not in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_row_68_redirects_are_followed(web: Web, policy: DownloadPolicy, status: int) -> None:
    web.url(answer(b"there"), "/there")
    assert fetch(web.url(redirect("/there", status)), policy=policy) == b"there"


def test_row_68_loops_and_long_chains_end(web: Web, policy: DownloadPolicy) -> None:
    error = failure(web.url(redirect("/x")), policy)
    assert (error.kind, error.transient) == ("redirect", False)
    assert len(web.requests) == 1 + policy.max_redirects


def test_row_68_https_does_not_lead_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    def send(self: object, request: requests.PreparedRequest, **kwargs: object) -> requests.Response:
        response = requests.Response()
        response.status_code, response.url, response.request = 302, str(request.url), request
        response.headers["Location"] = "http://1.1.1.1/"
        response.raw = None
        response._content = b""
        return response

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", send)
    error = failure("https://1.1.1.1/", DownloadPolicy())
    assert (error.kind, "from https to http" in str(error)) == ("redirect", True)


def test_row_69_a_name_is_looked_up_once_and_that_answer_is_used(
    connections: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["93.184.216.34", "127.0.0.1"])
    asked = []

    def resolve(host: str, port: int, *args: object, **kwargs: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    failure("http://rebind.example.org:8080/", DownloadPolicy())
    assert asked == ["rebind.example.org"]
    assert connections == [("93.184.216.34", 8080)]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/passwd",
            "FILE:///etc/passwd",
            "file://localhost/etc/passwd",
            "file:/etc/passwd",
            "//etc/passwd",
        ),
        *("/etc/passwd", "../etc/passwd", "gopher://1.1.1.1/", "ftp://1.1.1.1/", "jar:file:///x!/y", "data:,x"),
        *(
            "s3://bucket/key",
            "gs://bucket/key",
            "az://bucket/key",
            "C:\\x",
            "javascript:1",
            "memory://x",
            "s3::file:///etc/passwd",
        ),
    ],
)
def test_row_70_other_schemes_are_refused(url: str) -> None:
    error = failure(url, DownloadPolicy())
    assert error.kind in {"scheme", "url"}
    assert not error.transient


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside.txt").write_text("secret")
    inside = tmp_path / "root"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a b#c.txt").write_text("data")
    (inside / "empty").touch()
    (inside / "link-in").symlink_to(inside / "sub")
    (inside / "link-out").symlink_to(tmp_path / "outside.txt")
    (inside / "link-up").symlink_to(tmp_path)
    (inside / "zero").symlink_to("/dev/zero")
    os.mkfifo(inside / "fifo")
    return inside


@pytest.mark.parametrize(
    "name", ["sub/a%20b%23c.txt", "link-in/a%20b%23c.txt", "sub/../sub/a%20b%23c.txt", "./sub//a%20b%23c.txt"]
)
def test_row_70_files_below_a_root_are_read(root: Path, name: str) -> None:
    assert fetch(f"file://{root}/{name}", policy=DownloadPolicy(roots=(str(root),))) == b"data"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (name, "file")
            for name in ("../outside.txt", "%2e%2e/outside.txt", "link-out", "link-up/outside.txt", "zero")
        ),
        *((name, "file") for name in ("fifo", "sub", "", "missing", "../root2/x", "sub/a%20b%23c.txt/x")),
        *((name, "url") for name in ("sub/a?b", "sub/a#b", "a%00b")),
        ("empty", "empty"),
    ],
)
def test_row_70_nothing_else_is_read(root: Path, name: str, kind: str) -> None:
    (root.parent / "root2").mkdir()
    (root.parent / "root2" / "x").write_text("secret")
    error = failure(f"file://{root}/{name}", DownloadPolicy(roots=(str(root),)))
    assert (error.kind, error.transient) == (kind, False)


def test_row_70_a_host_or_an_absolute_target_is_refused(root: Path) -> None:
    policy = DownloadPolicy(roots=(str(root),))
    assert failure(f"file://localhost{root}/empty", policy).kind == "url"
    assert failure("file:///etc/passwd", policy).kind == "file"
    assert failure("file:///dev/zero", DownloadPolicy(roots=("/dev",))).kind == "file"


def test_row_70_a_folder_swapped_for_a_link_after_the_check_leads_nowhere(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_path = os.path.realpath
    (root.parent / "sub").mkdir()
    (root.parent / "sub" / "f").write_text("secret")
    (root / "sub" / "f").write_text("data")

    def swap(path: Any, **options: Any) -> str:
        found = str(real_path(path, **options))
        if found.endswith("/sub/f"):
            (root / "sub").rename(root / "old")
            (root / "sub").symlink_to(root.parent / "sub")
        return found

    monkeypatch.setattr("os.path.realpath", swap)
    assert failure(f"file://{root}/sub/f", DownloadPolicy(roots=(str(root),))).kind == "file"


def test_row_72_large_files_are_refused(root: Path) -> None:
    policy = DownloadPolicy(roots=(str(root),), max_bytes=1000)
    (root / "large").write_bytes(bytes(1001))
    (root / "fits").write_bytes(bytes(1000))
    assert failure(f"file://{root}/large", policy).kind == "size"
    assert len(fetch(f"file://{root}/fits", policy=policy)) == 1000


def drip(web: Web, first: bytes) -> Answer:
    """Send something, then a byte now and then until the test is over."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        while not web.stopping.wait(0.05):
            handler.wfile.write(b"x")

    return write


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n",
        b"HTTP/1.1 200 OK\r\nX-Header: ",
        b"",
    ],
    ids=["body", "body without length", "chunked body", "header", "status line"],
)
def test_row_71_a_dripping_server_is_left_at_the_deadline(web: Web, policy: DownloadPolicy, first: bytes) -> None:
    threads = threading.active_count()
    error = failure(web.url(drip(web, first)), replace(policy, total_timeout=0.5))
    assert (error.kind, error.transient) == ("time", True)
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
    assert threading.active_count() <= threads + 1, "none but the server's own thread"


def test_row_71_a_dripping_tls_handshake_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x3f\xff")  # a record of 16383 bytes follows
                while not stop.wait(0.05):
                    connection.sendall(b"\x02")

        thread = threading.Thread(target=serve)
        thread.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        try:
            error = failure(f"https://{host}/", DownloadPolicy(trusted_hosts=frozenset({host}), total_timeout=0.5))
        finally:
            stop.set()
            thread.join()
    assert (error.kind, error.transient) == ("time", True)


class TLSWeb(Web):
    """The web server behind a certificate for ``files.example.org`` that a file vouches for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("files.example.org")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "both.pem").write_bytes(private + self.ca_file.read_bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "both.pem")
        context.sni_callback = lambda sock, host, context: self.names.append(host)
        self.names: list[str | None] = []
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)


@pytest.fixture
def tls_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TLSWeb]:
    """The server, reached through a name with a public address."""
    server = TLSWeb(tmp_path)
    connect = urllib3.util.connection.create_connection
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))

    def to_server(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        assert address == ("93.184.216.34", 443)
        return connect(("127.0.0.1", server.server.server_port), *args, **kwargs)

    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        "socket.getaddrinfo",
        lambda host, *a, **k: [public] if host.endswith(".example.org") else look_up(host, *a, **k),
    )
    monkeypatch.setattr("urllib3.util.connection.create_connection", to_server)
    yield server
    server.close()


def test_row_67_the_pinned_address_must_prove_the_name(tls_web: TLSWeb) -> None:
    tls_web.url(answer(b"secure"))
    policy = DownloadPolicy(ca_file=str(tls_web.ca_file))
    assert fetch("https://files.example.org/x", policy=policy) == b"secure"
    assert tls_web.names == ["files.example.org"]
    assert tls_web.requests[0][1]["host"].split(":")[0] == "files.example.org"
    error = failure("https://other.example.org/x", policy)
    assert (error.kind, error.transient, "doesn't match" in str(error)) == ("tls", False, True)
    error = failure("https://files.example.org/x", DownloadPolicy())
    assert (error.kind, error.transient, "self-signed certificate" in str(error)) == ("tls", False, True)
    assert len(tls_web.requests) == 1


def test_row_71_the_deadline_holds_inside_tls(tls_web: TLSWeb) -> None:
    tls_web.url(drip(tls_web, b"HTTP/1.1 200 OK\r\n\r\n"))
    error = failure("https://files.example.org/x", DownloadPolicy(ca_file=str(tls_web.ca_file), total_timeout=0.5))
    assert (error.kind, error.transient) == ("time", True)


def test_row_71_a_silent_server_is_left_at_the_read_timeout(web: Web, policy: DownloadPolicy) -> None:
    url = web.url(lambda handler: web.stopping.wait())  # type: ignore[arg-type]
    error = failure(url, replace(policy, read_timeout=0.2))
    assert (error.kind, error.transient) == ("time", True)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")


@pytest.mark.parametrize(
    ("how", "kind", "transient"),
    [
        (answer(length=10 * 2**30), "size", False),
        (answer(bytes(MEGABYTE + 1)), "size", False),
        (endless, "size", False),
        (answer(b"abc", length=10), "network", True),
        (answer(b""), "empty", False),
        (
            lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
            "network",
            True,
        ),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "network", True),
        (lambda handler: None, "network", True),
    ],
    ids=["announced", "too large", "endless", "cut off", "no bytes", "cut chunk", "no HTTP", "closed"],
)
def test_row_72_wrong_lengths(web: Web, policy: DownloadPolicy, how: Answer, kind: str, transient: bool) -> None:
    error = failure(web.url(how), policy)
    assert (error.kind, error.transient) == (kind, transient)


def test_row_72_exactly_the_limit_fits(web: Web, policy: DownloadPolicy) -> None:
    assert len(fetch(web.url(answer(bytes(MEGABYTE))), policy=policy)) == MEGABYTE


ZEROS = bytes(50 * MEGABYTE)
BOMB = gzip.compress(ZEROS)


@pytest.mark.parametrize(
    ("body", "encoding", "kind"),
    [
        (BOMB, "gzip", "size"),
        (zlib.compress(ZEROS), "deflate", "size"),
        (gzip.compress(BOMB), "gzip, gzip", "encoding"),
        (b"\x1b\x00", "br", "encoding"),
        (b"\x28\xb5\x2f\xfd", "zstd", "encoding"),
        (b"not gzip", "gzip", "encoding"),
    ],
    ids=["gzip", "deflate", "nested", "brotli", "zstd", "broken"],
)
def test_row_73_packed_bombs_are_not_unpacked(
    web: Web, policy: DownloadPolicy, body: bytes, encoding: str, kind: str
) -> None:
    url = web.url(answer(body, Content_Encoding=encoding))
    tracemalloc.start()
    try:
        error = failure(url, policy)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (error.kind, error.transient) == (kind, False)
    assert peak < policy.max_bytes + 16 * MEGABYTE


def test_row_73_what_is_sent_packed_all_the_same_is_unpacked(web: Web, policy: DownloadPolicy) -> None:
    assert fetch(web.url(answer(gzip.compress(b"data" * 100), Content_Encoding="gzip")), policy=policy) == b"data" * 100


def test_row_76_no_password_is_said_or_sent(
    web: Web, policy: DownloadPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(web.url(answer()), policy=policy)
    assert "authorization" not in web.requests[0][1]
    error = failure(f"http://u:hunter2@{web.host}/x?token=hunter2", policy)
    assert (error.kind, "hunter2" in str(error), "hunter2" in repr(error)) == ("url", False, False)
    error = failure(web.url(answer(status=500), "/x?token=hunter2"), policy)
    assert (error.kind, "hunter2" in str(error)) == ("status", False)
    assert error.__cause__ is None


def test_row_76_headers_go_to_their_host_only(web: Web, policy: DownloadPolicy) -> None:
    other = Web()
    try:
        secret = {"Authorization": "Bearer hunter2"}
        both = replace(policy, headers={web.host: secret}, trusted_hosts=frozenset({web.host, other.host}))
        assert fetch(web.url(redirect(other.url(answer(b"there")))), policy=both) == b"there"
        assert web.requests[0][1]["authorization"] == "Bearer hunter2"
        assert "authorization" not in other.requests[0][1]
        assert "hunter2" not in repr(both)
    finally:
        other.close()


@pytest.mark.parametrize("status", [200, 201, 203, 206])
def test_row_77_success(web: Web, policy: DownloadPolicy, status: int) -> None:
    assert fetch(web.url(answer(status=status)), policy=policy) == b"data"


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 405, 410, 418, 451])
def test_row_77_permanent_failures(web: Web, policy: DownloadPolicy, status: int) -> None:
    error = failure(web.url(answer(b"" if status == 304 else b"page", status=status, Retry_After="5")), policy)
    assert (error.kind, error.transient, error.retry_after) == ("status", False, None)
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(("given", "wait"), [("5", 5.0), ("86400", 600.0), ("soon", None), ("-3", None)])
def test_row_77_transient_failures(
    web: Web, policy: DownloadPolicy, status: int, given: str, wait: float | None
) -> None:
    error = failure(web.url(answer(status=status, Retry_After=given)), policy)
    assert (error.kind, error.transient, error.retry_after) == ("status", True, wait)
    assert len(web.requests) == 1, "trying again is the job's business"


@pytest.mark.parametrize(("delta", "low", "high"), [(100, 1, 100), (-100, 0, 0), (10**6, 600, 600)])
def test_row_77_retry_after_as_a_date(web: Web, policy: DownloadPolicy, delta: int, low: float, high: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=delta), usegmt=True)
    error = failure(web.url(answer(status=503, Retry_After=date)), policy)
    assert error.retry_after is not None
    assert low <= error.retry_after <= high


@pytest.mark.parametrize(
    "url",
    [
        *(None, 5, "", " http://1.1.1.1", "http://", "http:///x", "http://①②⑦.⓪.⓪.①/", "http://%00/", "http://a%00b/"),
        *(
            "http://1.1.1.1/\r\nX: y",
            "http://1.1.1.1/\n",
            "http://1.1.1.1/" + "x" * 2**20,
            ["http://1.1.1.1"],
            b"http://1.1.1.1",
        ),
        *(
            "http://1.1.1.1:port/",
            "http://1.1.1.1:99999/",
            "http://[::1",
            "http://1.1.1.1\\@127.0.0.1/",
            "http:1.1.1.1",
        ),
        *("http://" + "a" * 64 + ".org/", "http://.org/", "http://*/"),
    ],
    ids=lambda url: repr(url)[:30],
)
def test_row_78_what_is_no_url_is_refused(url: Any, connections: list[tuple[str, int]]) -> None:
    error = failure(url, DownloadPolicy())
    assert error.kind in {"url", "address"}
    assert not error.transient
    assert len(str(error)) < 500
    assert connections == []


def test_urls_are_checked_before_anything_is_opened(connections: list[tuple[str, int]]) -> None:
    assert check_url("https://example.org/a", policy=DownloadPolicy()).hostname == "example.org"
    with pytest.raises(DownloadError, match=r"'ftp' is not fetched; allowed here: http, https\."):
        check_url("ftp://example.org/a", policy=DownloadPolicy())
    with pytest.raises(
        DownloadError, match=r"allowed here: http, https\. Name the folders or buckets .*downloads\.roots"
    ):
        check_url("file:///data/a", policy=DownloadPolicy())
    assert connections == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> DownloadPolicy:
    """A cloud store in memory."""

    class Cloud(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no type information
        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("s3://").strip("/")

    cloud = Cloud(skip_instance_cache=True)
    cloud.store, cloud.pseudo_dirs = {}, [""]  # those of the class would outlive the test
    for name, data in {
        "photos/a.png": b"data",
        "photos/large": bytes(2000),
        "photos/empty": b"",
        "private/b": b"secret",
    }.items():
        cloud.pipe_file(f"s3://bucket/{name}", data)
    monkeypatch.setattr("fsspec.filesystem", lambda protocol: {"s3": cloud}[protocol])
    return DownloadPolicy(roots=("s3://bucket/photos",), max_bytes=1000)


def test_cloud_objects_below_a_named_place_are_read(bucket: DownloadPolicy) -> None:
    assert fetch("s3://bucket/photos/a.png", policy=bucket) == b"data"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("s3://bucket/private/b", "cloud"),
        ("s3://bucket/photos/../private/b", "cloud"),
        ("s3://bucket/photosX/b", "cloud"),
        ("s3://other/photos/a.png", "cloud"),
        ("gs://bucket/photos/a.png", "cloud"),
        ("s3://bucket/photos/missing", "cloud"),
        ("s3://bucket/photos/large", "size"),
        ("s3://bucket/photos/empty", "empty"),
    ],
)
def test_other_cloud_objects_are_not(bucket: DownloadPolicy, url: str, kind: str) -> None:
    error = failure(url, bucket)
    assert (error.kind, error.transient) == (kind, False)


@pytest.mark.parametrize(
    ("raised", "message", "transient"),
    [
        (ImportError("s3fs"), "pip install s3fs", False),
        (OSError("key=hunter2"), "OSError", True),
        (PermissionError(), "PermissionError", False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_cloud_failures_are_said_without_their_texts(
    bucket: DownloadPolicy, monkeypatch: pytest.MonkeyPatch, raised: Exception, message: str, transient: bool
) -> None:
    def fail(protocol: str) -> None:
        raise raised

    monkeypatch.setattr("fsspec.filesystem", fail)
    error = failure("s3://bucket/photos/a.png", bucket)
    assert (error.kind, error.transient) == ("cloud", transient)
    assert message in str(error)
    assert "hunter2" not in str(error)


def test_a_cloud_store_that_hangs_is_left_at_the_deadline(
    bucket: DownloadPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr("fsspec.filesystem", lambda protocol: release.wait())
    error = failure("s3://bucket/photos/a.png", replace(bucket, total_timeout=0.1))
    release.set()
    assert (error.kind, error.transient) == ("time", True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"roots": ("relative",)},
        {"roots": ("http://x.org",)},
        {"roots": ("s3://",)},
        {"trusted_hosts": frozenset({"http://x"})},
        {"trusted_hosts": frozenset({"Host"})},
        {"max_bytes": 0},
        {"total_timeout": -1},
    ],
    ids=str,
)
def test_a_wrong_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        DownloadPolicy(**wrong)


def test_errors_cross_processes() -> None:
    error: DownloadError = pickle.loads(pickle.dumps(DownloadError("status", "503", transient=True, retry_after=5.0)))
    assert issubclass(DownloadError, ServiceError)
    assert (error.kind, str(error), error.transient, error.retry_after) == ("status", "503", True, 5.0)
