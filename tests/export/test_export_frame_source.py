"""Frames of images, videos and cameras, by the real OpenCV; a camera is a stream that the live page sends, or a stand-in."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.errors import InvalidInput, Unavailable
from export.prediction import frame_source
from export.prediction.frame_source import Camera, Frame, ImageFiles, Video, open_sources
from export.prediction.live_page import LivePage
from export.prediction.opencv import VideoFile

GREY = np.full((20, 31, 3), 128, np.uint8)


def write_video(path: Path, levels: range) -> Path:
    """Write a video of even pictures that get brighter."""
    video = VideoFile(path, rate=12.5)
    for level in levels:
        video.write(np.full_like(GREY, level))
    video.close()
    return path


def test_images_come_upright_and_a_bad_one_as_an_error(tmp_path: Path) -> None:
    left = np.zeros((40, 60, 3), np.uint8)
    left[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(left).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "b.JPG").write_bytes(b"nonsense")
    Image.fromarray(np.full((4, 6), 0x8001, np.uint16)).save(tmp_path / "c.tif")
    (tmp_path / "._d.jpg").write_bytes(b"what macOS leaves behind")
    (tmp_path / "e.txt").write_text("none")
    (source,) = open_sources([str(tmp_path)])
    assert isinstance(source, ImageFiles) and source.total == 3
    first, bad, grey = source
    assert isinstance(first, Frame) and first.picture.size == (40, 60) and first.read_ms > 0
    assert first.picture.getpixel((5, 5)) == (255, 255, 255) and first.picture.getpixel((5, 55)) == (0, 0, 0)
    assert isinstance(bad, InvalidInput) and str(bad).startswith(str(tmp_path / "b.JPG"))
    assert isinstance(grey, Frame) and grey.picture.getpixel((0, 0)) == (128, 128, 128)


def test_a_video_drops_nothing_and_begins_again(tmp_path: Path) -> None:
    (source,) = open_sources([str(write_video(tmp_path / "v.mp4", range(20, 220, 20)))])
    assert isinstance(source, Video) and (source.total, source.rate, source.dropped) == (10, 12.5, 0)
    for _ in range(2):
        frames = [frame for frame in source if isinstance(frame, Frame)]
        assert len(frames) == 10 and frames[0].picture.size == (30, 20) and frames[0].picture.mode == "RGB"
        levels = [np.asarray(frame.picture).mean() for frame in frames]
        np.testing.assert_allclose(levels, range(20, 220, 20), atol=4)
    assert source.notes == []


def test_colours_keep_their_order(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "v.mp4", 10)
    video.write(np.broadcast_to(np.array([200, 100, 20], np.uint8), (32, 32, 3)).copy(), times=3)
    video.close()
    frames = [frame for frame in Video(tmp_path / "v.mp4") if isinstance(frame, Frame)]
    np.testing.assert_allclose(np.asarray(frames[-1].picture).mean((0, 1)), [200, 100, 20], atol=6)
    with pytest.raises(InvalidInput, match="from 20x31 to 8x8, and a video has one"):
        video = VideoFile(tmp_path / "w.mp4", 10)
        video.write(GREY)
        video.write(GREY[:8, :8])


def test_a_video_that_ends_early_is_said(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.avi", range(20, 220, 2)).read_bytes()
    (tmp_path / "torn.avi").write_bytes(whole[: len(whole) * 2 // 3])
    source = Video(tmp_path / "torn.avi")
    count = len(list(source))
    assert 0 < count < 100
    assert source.total is None or source.total == count or "could be read" in source.notes[0]


def test_neighbours_become_one_source(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for name in names:
        Image.fromarray(GREY).save(name)
    video = str(write_video(tmp_path / "v.mp4", range(9)))
    sources = open_sources([*names, video, names[0]])
    assert [type(source) for source in sources] == [ImageFiles, Video, ImageFiles]
    assert [source.name for source in sources] == [f"{names[0]} and 1 more", video, names[0]]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["none.png"], "no such file or folder: none.png"), (["empty"], "empty holds no images"),
        (["t.txt"], "suffix '.txt' is unknown"),
        (["torn.mp4"], r"torn\.mp4: cannot be read as a video"), (["void.avi"], r"void\.avi: cannot be read as a video"),
        (["camera:0", "a.png"], "camera:0 does not end"), (["camera:x"], "the first one is camera:0"), (["camera:"], "is camera:0"),
    ],
)  # fmt: skip
def test_what_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("t.txt").write_text("text")
    Path("void.avi").write_bytes(b"")
    Path("torn.mp4").write_bytes(write_video(tmp_path / "v.mp4", range(9)).read_bytes()[:-300])
    with pytest.raises(InvalidInput, match=reason):
        open_sources(names)


@pytest.mark.parametrize("name", ["camera:99", "/dev/video99", "rtsp://me:secret@127.0.0.1:1/x", "http://127.0.0.1:1/x?key=secret"])
def test_no_camera(name: str) -> None:
    with pytest.raises(Unavailable) as caught:
        open_sources([name])
    assert "nothing answers there" in caught.value.reason and "secret" not in str(caught.value)


def test_without_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", range(9))
    monkeypatch.setitem(sys.modules, "cv2", None)
    for name in (str(path), "camera:0"):
        with pytest.raises(Unavailable) as caught:
            open_sources([name])
        assert caught.value.install == "pip install 'opencv-python-headless>=4.9'"
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert len(list(open_sources([str(tmp_path / "a.png")])[0])) == 1


class Capture:
    """Six pictures, of which all but the first wait for `go`; the end waits for `stop`."""

    def __init__(self) -> None:
        self.go, self.stop, self.count = threading.Event(), threading.Event(), -1  # opening takes one to see whether it works

    def grab(self) -> bool:
        if self.count == 1:
            self.go.wait(10)
        if self.count == 6:
            self.stop.wait(10)
            return False
        self.count += 1
        return True

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((4, 6, 3), self.count, np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_gives_the_newest_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture()
    monkeypatch.setattr(frame_source, "open_camera", lambda address: capture)
    camera = Camera("rtsp://me:secret@host/street")
    assert camera.name == "rtsp://host/street" and camera.path.name == "rtsp-host-street"
    frames = iter(camera)
    first = next(frames)
    assert isinstance(first, Frame) and first.picture.getpixel((0, 0)) == (1, 1, 1) and first.arrived is not None
    capture.go.set()
    end = time.monotonic() + 10
    while camera.dropped < 4 and time.monotonic() < end:
        time.sleep(0.01)
    last = next(frames)
    assert isinstance(last, Frame) and last.picture.getpixel((0, 0)) == (6, 6, 6) and camera.dropped == 4
    capture.stop.set()
    assert list(frames) == [] and camera.notes == ["rtsp://host/street sends no more pictures"]
    camera.close()


def test_a_camera_of_the_network() -> None:
    """OpenCV reads what the live page sends."""
    done = threading.Event()
    with LivePage("127.0.0.1", 0, "street", dict) as page:

        def send() -> None:
            while not done.is_set():
                page.write(Frame(Image.fromarray(GREY), Path("x"), 0.0), np.full((48, 64, 3), 90, np.uint8), GREY[..., 0])
                time.sleep(0.02)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            camera = Camera(f"{page.url}stream")
            frames = iter(camera)
            pictures = [next(frames) for _ in range(3)]
            camera.close()
        finally:
            done.set()
            sender.join()
    assert all(isinstance(frame, Frame) and frame.picture.size == (64, 48) for frame in pictures)
    assert all(isinstance(frame, Frame) and abs(float(np.asarray(frame.picture).mean()) - 90) < 4 for frame in pictures)
