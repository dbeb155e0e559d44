"""Show overlays on a web page while they are made: a stream of JPEGs, frames per second, and where the time goes."""

from __future__ import annotations

import html
import ipaddress
import json
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import Give, InvalidInput
from export.prediction.frame_source import Frame
from export.prediction.prediction import jpeg

VIEWERS = 4
"""Streams at a time."""
PATIENCE_SECONDS = 10.0
"""How long a viewer may take to send a request, or to receive one picture."""
BOUNDARY = "picture"


class LivePage:
    """A web page that shows the newest overlay; a sink (`export.prediction.prediction.Sink`) and a context manager.

    On a loopback address it answers only requests that name one: a page of somebody else's, whose name is made to lead here, is
    refused. Anywhere else, whoever reaches the address sees the pictures.

    Args:
        host: address to listen on.
        port: 0 for any that is free.
        title: what is shown.
        times: returns what the page shows of the times, plain values.

    Raises:
        InvalidInput: the address is none of this machine, or taken.
    """

    def __init__(self, host: str, port: int, title: str, times: Callable[[], dict[str, Any]]) -> None:
        self.title, self.times, self.local = title, times, is_local(host)
        self.viewers = threading.BoundedSemaphore(VIEWERS)
        self._changed, self._picture, self._count, self.ended = threading.Condition(), b"", 0, False
        kind = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise InvalidInput(f"no page can be served at {host} port {port}: {error}", Give("serve")) from None
        self._server.page = self
        port = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="live page", daemon=True)

    def write(self, frame: Frame, drawn: np.ndarray, labels: np.ndarray) -> None:
        """Show a frame's overlay."""
        data = jpeg(drawn)
        with self._changed:
            self._picture, self._count = data, self._count + 1
            self._changed.notify_all()

    def end(self) -> None:
        """Say that no picture follows."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def next_picture(self, after: int) -> tuple[int, bytes] | None:
        """Return the number and JPEG file of a picture newer than number `after`; None where none follows.

        It waits for one; after a while the same one comes again, which tells whether its viewer is still there.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count > after or self.ended, PATIENCE_SECONDS)
            return None if self.ended and self._count <= after else (self._count, self._picture)

    def __enter__(self) -> LivePage:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        self._server.shutdown()
        self._server.server_close()


def is_local(host: str) -> bool:
    """Say whether an address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    page: LivePage

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer who leaves is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version, timeout = "hyctas", "", PATIENCE_SECONDS

    def do_GET(self) -> None:
        """Answer with the page, the stream or the times."""
        page = self.server.page
        if page.local and not is_local(re.sub(r":\d*$", "", self.headers.get("Host", "")).strip("[]")):
            self._answer(403, "text/plain", b"this page is for this machine alone: open it as localhost\n")
        elif self.path == "/":
            nonce = secrets.token_urlsafe(12)
            text = Path(__file__).with_name("live_page.html").read_text(encoding="utf-8")
            text = text.replace("NONCE", nonce).replace("TITLE", html.escape(page.title))
            rules = f"default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
            self._answer(200, "text/html; charset=utf-8", text.encode(), {"Content-Security-Policy": rules})
        elif self.path == "/times":
            self._answer(200, "application/json", json.dumps({**page.times(), "ended": page.ended}).encode())
        elif self.path == "/stream":
            self._stream(page)
        else:
            self._answer(404, "text/plain", b"nothing here; the page is /\n")

    def _stream(self, page: LivePage) -> None:
        if not page.viewers.acquire(blocking=False):
            self._answer(503, "text/plain", f"{VIEWERS} viewers watch already\n".encode())
            return
        try:
            self._head(200, f"multipart/x-mixed-replace; boundary={BOUNDARY}")
            number, line = 0, f"--{BOUNDARY}\r\n"
            self.wfile.write(line.encode())
            while (found := page.next_picture(number)) is not None:
                number, data = found
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + f"\r\n{line}".encode())  # browsers draw a picture once the line is there
        except OSError:  # the viewer left, or takes too long
            pass
        finally:
            page.viewers.release()
        self.close_connection = True

    def _answer(self, code: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self._head(code, kind, {"Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body)

    def _head(self, code: int, kind: str, more: dict[str, str] | None = None) -> None:
        fixed = {"Content-Type": kind, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
                 "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer"}  # fmt: skip
        self.send_response(code)
        for name, value in {**fixed, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent."""
