"""Servers for tests of storage: S3, a gate before it that stalls or breaks, and a web server with ranges."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scaleaudio.data import patience


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator[tuple[str, int]]:
    """A real S3 server with one bucket, which `s3://` urls then mean; gives its host and port."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        remote = fs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True, region="us-east-1"
        )
        remote.create_dir(bucket)
        yield host, port
    finally:
        server.stop()


class Gate:
    """A TCP server before another one: what it is asked it passes on, unless it stalls.

    `stall(n)` lets the next n requests for an object's bytes wait until the gate is closed: those of objects whose name
    holds `stall_name`. `asked` has method, path and number of bytes of each request.
    """

    def __init__(self, host: str, port: int) -> None:
        self._behind = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._num_to_stall = 0
        self.stall_name = b""
        self.num_stalled = 0
        self.num_ranges = 0
        self.asked: list[tuple[str, str, int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self, num_requests: int) -> None:
        with self._lock:
            self._num_to_stall = num_requests

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._behind) as server, suppress(OSError):
            threading.Thread(target=_pour, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 16):
                self._note(data)
                if self._stalls(data):
                    self._closed.wait()
                    return
                server.sendall(data)

    def num_asked(self, method: str, ending: str) -> int:
        """How many requests there were for objects whose path ends so."""
        return sum(asked == method and path.endswith(ending) for asked, path, _ in self.asked)

    def _note(self, request: bytes) -> None:
        line = re.match(rb"([A-Z]+) ([^ ]*) HTTP", request)
        if line:
            span = re.search(rb"\r\nrange: bytes=(\d+)-(\d+)\r\n", request, re.IGNORECASE)
            num_bytes = int(span[2]) + 1 - int(span[1]) if span else 0
            self.asked.append((line[1].decode(), line[2].decode(), num_bytes))

    def _stalls(self, request: bytes) -> bool:
        if not re.match(rb"GET [^ ]*\.tar", request):
            return False
        with self._lock:
            self.num_ranges += 1
            if not self._num_to_stall or self.stall_name not in request.partition(b"\r")[0]:
                return False
            self._num_to_stall -= 1
            self.num_stalled += 1
            return True


class Away:
    """A TCP server before another one: it hangs up on everybody until `come_back`."""

    def __init__(self, behind_port: int) -> None:
        self._behind_port = behind_port
        self._back = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def come_back(self) -> None:
        self._back.set()

    def go_away(self) -> None:
        self._back.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self._back.is_set():
                with socket.create_connection(("127.0.0.1", self._behind_port)) as server:
                    threading.Thread(target=_pour, args=(server, client), daemon=True).start()
                    while (data := client.recv(1 << 16)) and self._back.is_set():
                        server.sendall(data)


@contextmanager
def gate_before(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate before an S3 server, by which `s3://` urls go; what fails is tried again at once."""
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    gate = Gate(*server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{gate.port}")
    try:
        yield gate
    finally:
        gate.close()


@contextmanager
def away(behind_port: int) -> Iterator[Away]:
    """A server that is not there yet, before the one at `behind_port`."""
    server = Away(behind_port)
    try:
        yield server
    finally:
        server.close()


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


class RangeHandler(SimpleHTTPRequestHandler):
    """A web server's handler that knows ranges, as the standard library's does not."""

    listing = True

    def do_GET(self) -> None:
        """Answers with the range that was asked for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.write(data[start:end])

    def list_directory(self, path: str) -> None:
        """The folder's page, where this server gives any."""
        if self.listing:
            return super().list_directory(path)
        self.send_error(403, "no listing")
        return None

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def web_server(folder: Path, handler: type[SimpleHTTPRequestHandler] = RangeHandler) -> Iterator[str]:
    """Serves `folder`; gives the url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
