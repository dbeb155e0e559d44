"""The live page, asked as a browser asks it."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle.imaging import decode
from export.errors import InvalidInput
from export.prediction import live_page
from export.prediction.frame_source import Frame
from export.prediction.live_page import VIEWERS, LivePage

FRAME = Frame(Image.new("RGB", (30, 20)), Path("x.png"), 0.0)
TIMES = {"frames": 7, "fps": 3.5, "median_ms": {"running": 2.0}, "dropped": None}


@pytest.fixture
def page() -> Iterator[LivePage]:
    with LivePage("127.0.0.1", 0, "a <b> & c", lambda: dict(TIMES)) as served:
        yield served


def show(page: LivePage, level: int) -> None:
    page.write(FRAME, np.full((20, 30, 3), level, np.uint8), np.zeros((20, 30), np.uint8))


def ask(page: LivePage, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(page.url.split("/")[2], timeout=10)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def picture(answer: http.client.HTTPResponse) -> int:
    """Read the next picture of a stream; return its grey."""
    head = [answer.readline().strip() for _ in range(3)]
    assert head[0] == b"Content-Type: image/jpeg" and head[2] == b""
    data = answer.read(int(head[1].partition(b":")[2]))
    assert answer.read(len("\r\n--picture\r\n")) == b"\r\n--picture\r\n"
    return int(np.asarray(decode(data)).mean())


def test_page_and_times(page: LivePage) -> None:
    answer = ask(page, "/")
    text, rules = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert answer.status == 200 and "a &lt;b&gt; &amp; c" in text and "<b>" not in text and "http" not in text
    nonce = re.search('nonce="([^"]+)"', text)
    assert nonce is not None and f"'nonce-{nonce[1]}'" in rules and "default-src 'none'" in rules
    assert nonce[1] not in ask(page, "/").read().decode()
    answer = ask(page, "/times")
    assert json.loads(answer.read()) == {**TIMES, "ended": False} and answer.headers["Cache-Control"] == "no-store"
    page.end()
    assert json.loads(ask(page, "/times").read())["ended"]
    assert ask(page, "/../../etc/passwd").status == 404


def test_a_stream_shows_the_newest_picture(page: LivePage) -> None:
    show(page, 10)
    show(page, 50)
    answer = ask(page, "/stream")
    assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=picture"
    assert answer.readline() == b"--picture\r\n" and picture(answer) == 50
    show(page, 90)
    assert picture(answer) == 90
    page.end()
    assert answer.read() == b""


def test_a_picture_comes_again_where_none_follows(page: LivePage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "PATIENCE_SECONDS", 0.05)
    show(page, 10)
    answer = ask(page, "/stream")
    answer.readline()
    assert [picture(answer) for _ in range(3)] == [10, 10, 10]


def test_a_few_viewers_at_a_time(page: LivePage) -> None:
    show(page, 10)
    viewers = [ask(page, "/stream") for _ in range(VIEWERS)]
    assert [viewer.status for viewer in viewers] == [200] * VIEWERS and ask(page, "/stream").status == 503
    viewers[0].close()
    end = time.monotonic() + 10
    while (last := ask(page, "/stream")).status == 503 and time.monotonic() < end:
        show(page, 20)  # sending shows that one has left
    assert last.status == 200


def test_only_this_machine_is_answered_on_loopback(page: LivePage) -> None:
    port = page.url.split(":")[2].strip("/")
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert ask(page, "/times", Host=host).status == 200
    for host in ("evil.example", f"evil.example:{port}", "192.168.0.7", ""):
        assert ask(page, "/times", Host=host).status == 403
    assert ask(page, "/").headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_an_address_that_is_taken_or_none(page: LivePage) -> None:
    port = int(page.url.split(":")[2].strip("/"))
    for host, number in (("127.0.0.1", port), ("192.0.2.1", 0), ("no such host", 0)):
        with pytest.raises(InvalidInput, match="no page can be served at"):
            LivePage(host, number, "x", dict)


def test_it_ends_while_viewers_wait(page: LivePage) -> None:
    answer = ask(page, "/stream")
    threading.Timer(0.1, page.end).start()
    assert answer.read() in (b"--picture\r\n", b"--picture\r\n\r\n")
