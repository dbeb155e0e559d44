"""hyctas-predict: what it writes, what it shows, and how it ends on bad input."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import InvalidInput
from export.prediction.frame_source import Frame, Video
from export.prediction.live_page import LivePage
from export.prediction.opencv import VideoFile
from hyctas.commands.predict import parse_address
from hyctas.data import Labels
from tests.export import foreign_files as foreign
from tests.hyctas.cli.conftest import Command, expect, write_run

ROOT = Path(__file__).parents[3]
COLOURS = ((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90))
METADATA = {"labels": json.dumps({"names": list("abcde"), "colours": COLOURS, "ignore": None})}
WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked", name=name)
sys.meta_path.insert(0, Block())
from hyctas.cli.predict import main
main()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, three images and a video in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    foreign.classes(tmp_path / "m.onnx", metadata=METADATA)
    rng = np.random.default_rng(0)
    Path("photographs").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(Path("photographs") / name)
    video = VideoFile(tmp_path / "clip.mp4", 20)
    for level in range(0, 250, 25):
        video.write(np.full((16, 24, 3), level, np.uint8))
    video.close()
    return tmp_path


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command in a process of its own that heeds SIGINT."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {WITHOUT_TORCH}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_folder_and_a_video(command: Command) -> None:
    Path("photographs/damaged.png").write_bytes(b"none")
    before = {path: path.read_bytes() for path in Path("photographs").iterdir()}
    text = expect(command("predict", "photographs", "clip.mp4", "--model", "m.onnx", "--labels"), 1, "1 file could not be read")
    assert text.count("photographs/damaged.png: cannot be read") == 1
    for said in ("model: m.onnx on onnxruntime-cpu:fp32, 2 threads", "wrote 3 overlays into predictions", "13 frames in",
                 "wrote predictions/clip.overlay.mp4", "median ms of a frame: reading", "not normalised"):  # fmt: skip
        assert said in text
    names = "a.labels a.overlay a.png.labels a.png.overlay b.labels b.overlay".split()
    assert sorted(path.name for path in Path("predictions").glob("*.png")) == [f"{name}.png" for name in names]
    assert len(list(Path("predictions/clip.labels").iterdir())) == 10 and Path("predictions/clip.overlay.mp4").exists()
    assert {path: path.read_bytes() for path in Path("photographs").iterdir()} == before
    with Image.open("predictions/b.labels.png") as file:
        assert file.getpalette("RGB")[:6] == [10, 20, 30, 200, 0, 0]  # type: ignore[index]


def test_the_default_model_needs_no_flag_and_no_torch() -> None:
    Path("models/balanced").mkdir(parents=True)
    process = start("photographs/b.png")
    assert "models/balanced is no bundle" in process.communicate(timeout=60)[1] and process.returncode == 2
    process = start("photographs", "--model", "m.onnx", "--out", "deep/er")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "wrote 3 overlays into deep/er" in out and len(list(Path("deep/er").iterdir())) == 3


def test_a_run_folder_has_its_colours(command: Command) -> None:
    write_run(Path("run"), Labels(tuple("abcde"), COLOURS))
    run = ("--model", "run", "--size", "32x32", "--target", "torch-cpu:fp32", "--labels")
    expect(command("predict", "photographs/b.png", *run), 0)
    with Image.open("predictions/b.labels.png") as file:
        assert file.getpalette("RGB")[:15] == [value for colour in COLOURS for value in colour]  # type: ignore[index]


def test_the_live_page() -> None:
    Path("photographs/damaged.png").write_bytes(b"none")
    process = start("photographs/damaged.png", "clip.mp4", "--model", "m.onnx", "--serve", "0")
    assert process.stdout is not None
    process.stdout.readline()
    found = re.fullmatch(r"live: http://(127\.0\.0\.1:\d+)/  \(Ctrl-C ends\)\n", process.stdout.readline())
    assert found is not None
    connection = http.client.HTTPConnection(found[1], timeout=30)
    connection.request("GET", "/stream")
    answer = connection.getresponse()
    answer.readline()
    for _ in range(12):  # the video has 10 frames and begins again
        assert answer.readline() == b"Content-Type: image/jpeg\r\n"
        length = int(answer.readline().partition(b":")[2])
        answer.read(length + len("\r\n\r\n--picture\r\n"))
    times = http.client.HTTPConnection(found[1], timeout=30)
    times.request("GET", "/times")
    now = json.loads(times.getresponse().read())
    assert now["frames"] >= 10 and now["dropped"] is None and now["median_ms"]["running"] > 0
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and err.count("damaged.png: cannot be read") == 1
    assert "FPS" in out and "median ms of a frame" in out and "Traceback" not in err and not Path("predictions").exists()


def test_a_camera_of_the_network(command: Command) -> None:
    """It ends with the stream, which the live page sends; the video has a frame for every thirtieth of a second."""
    with LivePage("127.0.0.1", 0, "street", dict) as page:

        def send() -> None:
            frame, labels = Frame(Image.new("RGB", (64, 48)), Path("x"), 0.0), np.zeros((48, 64), np.uint8)
            for level in range(0, 250, 5):
                page.write(frame, np.full((48, 64, 3), level, np.uint8), labels)
                time.sleep(0.04)
            page.end()

        sender = threading.Thread(target=send)
        sender.start()
        code, text = command("predict", f"{page.url}stream", "--model", "m.onnx", "--labels")
        sender.join()
    assert code == 0, text
    assert "sends no more pictures" in text
    (overlay,), (labels,) = Path("predictions").glob("http-*-stream.overlay.mp4"), Path("predictions").glob("http-*-stream.labels")
    count = len(list(labels.iterdir()))
    assert f"{count} frames in" in text and (Video(overlay).total or 0) >= count > 1


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ("photographs", 2, "no model is named, and no folder models/balanced is here"),
        ("--model m.onnx", 2, "nothing to segment"),
        ("photographs --model none.onnx", 2, "none.onnx"),
        ("photographs --model m.onnx --target tensorrt:fp16", 3, "tensorrt:fp16 is unavailable"),
        ("photographs --model m.onnx --target torch-cpu:fp32", 2, "take onnxruntime-cpu:fp32"),
        ("photographs --model m.onnx --size 64x64", 2, "64x64"),
        ("photographs --model two.onnx", 2, "model 'two.onnx': turning pictures into labels needs"),
        ("photographs --model m.onnx --serve 0 --labels", 2, "give one of them"),
        ("photographs --model m.onnx --serve 99999", 2, "no [HOST:]PORT"),
        ("photographs --model m.onnx --out m.onnx", 2, "in the way"),
        ("empty --model m.onnx", 2, "empty holds no images"),
        ("bad.png --model m.onnx", 2, "nothing of what was given could be read"),
        ("bad.png --model m.onnx --serve 0", 2, "nothing of what was given could be read"),
        ("torn.mp4 --model m.onnx", 2, "torn.mp4: cannot be read as a video"),
        ("camera:99 --model m.onnx", 3, "camera:99 is unavailable"),
        ("camera:0 photographs --model m.onnx", 2, "camera:0 does not end"),
    ],
)  # fmt: skip
def test_bad_input(command: Command, arguments: str, code: int, reason: str) -> None:
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"")
    Path("torn.mp4").write_bytes(Path("clip.mp4").read_bytes()[:-300])
    foreign.two_images(Path("two.onnx"))
    found, text = command("predict", *arguments.split())
    assert (found, "Traceback" in text) == (code, False), text
    assert reason in text
    assert not Path("predictions").exists() or list(Path("predictions").iterdir()) == []


def test_without_opencv(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    expect(command("predict", "clip.mp4", "--model", "m.onnx"), 3, "pip install 'opencv-python-headless>=4.9'")
    assert command("predict", "photographs", "--model", "m.onnx")[0] == 0


def test_addresses() -> None:
    assert parse_address("8000") == ("127.0.0.1", 8000) and parse_address(":8000") == ("127.0.0.1", 8000)
    assert parse_address("0.0.0.0:80") == ("0.0.0.0", 80) and parse_address("[::1]:80") == ("::1", 80)
    for text in ("", "x", "host:", "1:2:3", "::1:80", "-1", "65536", "٣"):
        with pytest.raises(InvalidInput, match="HOST"):
            parse_address(text)
