"""A real HTTP receiver with a script of answers, and a real ledger."""

from __future__ import annotations

import base64
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.ledger import Ledger


class Endpoint:
    """Answers as `script` says, one entry a request, the last one for ever.

    An entry is a status, (status, headers), "hang", "drip" or "reset".
    """

    def __init__(self) -> None:
        self.script: list[Any] = [200]
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Event()
        self.release = threading.Event()  # ends every hanging answer
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"endpoint": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook/canary-in-the-path"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.seen]

    def next(self, headers: dict[str, str], body: bytes) -> Any:
        with self._lock:
            self.seen.append(({k.lower(): v for k, v in headers.items()}, body))
            self.arrived.set()
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a sender that gave up is what the tests want


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.endpoint.next(dict(self.headers), body)
        if answer == "hang":
            self.endpoint.release.wait(30)
        elif answer == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
            while not self.endpoint.release.wait(0.05):
                self.wfile.write(b"z")
        elif answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        else:
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint()
    yield one
    one.close()


@pytest.fixture
def second() -> Iterator[Endpoint]:
    one = Endpoint()
    yield one
    one.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    one = Ledger(f"sqlite:///{tmp_path}/ledger.db").create()
    yield one
    one.close()


class PostOffice:
    """An SMTP server (RFC 5321) on loopback that keeps what it is given.

    Args:
        context: offers STARTTLS with it, or begins with TLS.
        implicit: begin with TLS.
        password: what `AUTH PLAIN` must bring (`user:password`).
    """

    def __init__(self, context: Any = None, *, implicit: bool = False, password: str = "") -> None:
        self.letters: list[bytes] = []
        self.encrypted: list[bool] = []
        self.answers: dict[str, bytes] = {}  # a verb and what is answered to it
        self.context, self.implicit, self.password = context, implicit, password
        office = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                office.talk(self.connection, secure=False)

        self.server = _Mailroom(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def talk(self, connection: Any, *, secure: bool) -> None:
        if self.implicit:
            connection, secure = self.context.wrap_socket(connection, server_side=True), True
        connection.settimeout(10)
        file = connection.makefile("rb")
        connection.sendall(b"220 ready\r\n")
        while line := file.readline():
            verb = line[:4].decode().strip().upper()
            if verb in self.answers:
                connection.sendall(self.answers[verb] + b"\r\n")
            elif verb == "EHLO":
                offers = [b"250-here"]
                offers += [b"250-STARTTLS"] if self.context and not secure else []
                offers += [b"250-AUTH PLAIN"] if self.password else []
                connection.sendall(b"\r\n".join([*offers, b"250 8BITMIME"]) + b"\r\n")
            elif verb == "STAR":
                connection.sendall(b"220 go\r\n")
                connection, secure = self.context.wrap_socket(connection, server_side=True), True
                file = connection.makefile("rb")
            elif verb == "AUTH":
                given = base64.b64decode(line.split()[2]).decode().strip("\0").replace("\0", ":")
                right = given == self.password
                connection.sendall(b"235 welcome\r\n" if right else b"535 who are you\r\n")
            elif verb == "DATA":
                connection.sendall(b"354 go on\r\n")
                lines = list(iter(file.readline, b".\r\n"))
                self.letters.append(b"".join(lines))
                self.encrypted.append(secure)
                connection.sendall(b"250 kept\r\n")
            elif verb == "QUIT":
                connection.sendall(b"221 bye\r\n")
                break
            else:
                connection.sendall(b"250 fine\r\n")
        connection.close()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


class _Mailroom(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that does not like our certificate is what the tests want


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of `localhost` that no authority knows, and a server's context with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("authority")
    pem, private = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return pem, context


@pytest.fixture
def post_office() -> Iterator[Callable[..., PostOffice]]:
    """Opens SMTP servers that are closed at the end."""
    opened: list[PostOffice] = []

    def opening(*arguments: Any, **options: Any) -> PostOffice:
        opened.append(PostOffice(*arguments, **options))
        return opened[-1]

    yield opening
    for one in opened:
        one.close()
