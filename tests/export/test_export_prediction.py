"""Segmenting frames: stage times, names, label maps, and files that are whole or not there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bench_models import BenchModel, OpenModel, open_models
from export.bundle.imaging import overlay
from export.errors import InvalidInput
from export.prediction.frame_source import Frame, ImageFiles, Video, open_sources
from export.prediction.opencv import VideoFile
from export.prediction.prediction import ImageSink, OutputNames, VideoSink, label_png, predict, read_paths, sink_for
from export.prediction.segment import Segmenter
from export.prediction.stage_times import STAGES, StageTimes
from export.runtimes import open_runtime
from export.target import Target
from tests.export import foreign_files as foreign

COLOURS = [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]]
METADATA = {"labels": json.dumps({"names": list("abcde"), "colours": COLOURS, "ignore": None})}


def opened(path: Path) -> OpenModel:
    return open_models([BenchModel("m", path)], open_runtime(Target("onnxruntime-cpu", "fp32"), 1), path.parent)[0]


def photographs(folder: Path, count: int) -> list[Path]:
    rng, paths = np.random.default_rng(0), [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return paths


def run(source: ImageFiles | Video, segmenter: Segmenter, sink: ImageSink | VideoSink) -> tuple[StageTimes, list[InvalidInput]]:
    times, unreadable = StageTimes(), list[InvalidInput]()
    predict(source, segmenter, sink, times, lambda: None, unreadable.append)
    return times, unreadable


def test_overlays_and_label_maps(tmp_path: Path) -> None:
    paths = photographs(tmp_path, 3)
    paths[1].write_bytes(b"")
    out = tmp_path / "out"
    with opened(foreign.classes(tmp_path / "m.onnx", metadata=METADATA)) as model:
        segmenter = Segmenter(model)
        with ImageSink(OutputNames(out, paths), model.colours, labels=True) as sink:
            times, unreadable = run(ImageFiles(paths, "photographs"), segmenter, sink)
        expected = segmenter.labels(segmenter.run(segmenter.prepare(Image.open(paths[0]))))
    assert times.frames == 2 and set(times.medians_ms()) == set(STAGES)
    assert len(unreadable) == 1 and "1.png" in str(unreadable[0])
    assert sorted(path.name for path in out.iterdir()) == ["0.labels.png", "0.overlay.png", "2.labels.png", "2.overlay.png"]
    with Image.open(out / "0.labels.png") as file:
        labels = np.asarray(file)
        palette = np.reshape(file.getpalette("RGB") or [], (-1, 3))
        assert file.mode == "P" and file.size == (24, 16) and palette[:5].tolist() == COLOURS
    np.testing.assert_array_equal(labels[::2, ::2], expected)
    with Image.open(paths[0]) as photograph, Image.open(out / "0.overlay.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), overlay(np.asarray(photograph), labels, COLOURS))


def test_label_maps_have_8_bits() -> None:
    for classes in (2, 5, 200):
        data = label_png(np.arange(classes).reshape(1, -1), np.zeros((classes, 3), np.uint8))
        assert data[24] == 8, "the header's bit depth"
        assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [list(range(classes))]
    with pytest.raises(InvalidInput, match="0 to 256 do not fit into 8 bits"):
        label_png(np.array([[0, 256]]), np.zeros((4, 3), np.uint8))


def test_no_name_is_given_twice_nor_to_a_source(tmp_path: Path) -> None:
    names = OutputNames(tmp_path, [tmp_path / "d.overlay.png"])
    sources = "x/a.jpg", "x/a.png", "y/a.png", "z/A.PNG", "d.jpg", "e.f.jpg"
    given = [names.take(Path(path), ".overlay.png")[0].name for path in sources]
    assert given == [f"{name}.overlay.png" for name in ("a", "a.png", "a.png.2", "A.PNG.3", "d.jpg", "e.f")]


def test_a_video_is_whole_or_not_there(tmp_path: Path) -> None:
    made = VideoFile(tmp_path / "clip.mp4", 10)
    for level in range(0, 250, 25):
        made.write(np.full((16, 24, 3), level, np.uint8))
    made.close()
    (source,), out = open_sources([str(tmp_path / "clip.mp4")]), tmp_path / "out"
    (out / "clip.labels").mkdir(parents=True)
    (out / "clip.labels" / "000099.png").write_bytes(b"of a longer video")
    (out / "clip.labels" / "mine.txt").write_text("kept")
    with opened(foreign.classes(tmp_path / "m.onnx")) as model:
        names = OutputNames(out, read_paths([source]))
        with pytest.raises(KeyboardInterrupt), sink_for(source, names, model.colours, labels=True) as sink:
            run(source, Segmenter(model), sink)
            raise KeyboardInterrupt
        assert sorted(path.name for path in out.rglob("*")) == ["000099.png", "clip.labels", "mine.txt"]
        names = OutputNames(out, read_paths([source]))
        with sink_for(source, names, model.colours, labels=True) as sink:
            run(source, Segmenter(model), sink)
    assert sorted(path.name for path in out.iterdir()) == ["clip.labels", "clip.overlay.mp4"]
    assert sorted(path.name for path in (out / "clip.labels").iterdir()) == [*(f"{n:06d}.png" for n in range(1, 11)), "mine.txt"]
    result = Video(out / "clip.overlay.mp4")
    assert (result.total, result.rate) == (10, 10.0)


def test_a_video_of_a_camera_keeps_the_time(tmp_path: Path) -> None:
    source = Video.__new__(Video)
    source.path, source.rate = Path("camera-0"), None
    picture = np.zeros((16, 24, 3), np.uint8)
    with VideoSink(source, OutputNames(tmp_path, []), np.zeros((2, 3), np.uint8), labels=False) as sink:
        for moment in (5.0, 5.01, 5.5, 6.0):
            sink.write(Frame(Image.fromarray(picture), source.path, 0.0, moment), picture, picture[..., 0])
    assert Video(tmp_path / "camera-0.overlay.mp4").total == 31  # a second at 30 frames, and the last one


def test_what_a_mask_means_is_noted_once(tmp_path: Path) -> None:
    paths = photographs(tmp_path, 2)
    with opened(foreign.sigmoid(tmp_path / "m.onnx")) as model:
        with ImageSink(OutputNames(tmp_path / "out", paths), model.colours, labels=False) as sink:
            run(ImageFiles(paths, "photographs"), Segmenter(model), sink)
        assert len([note for note in model.remarks if "one channel" in note]) == 1


def test_a_model_without_labels(tmp_path: Path) -> None:
    with opened(foreign.two_images(tmp_path / "m.onnx")) as model, pytest.raises(InvalidInput, match="one float32 image"):
        Segmenter(model)


def test_stage_times() -> None:
    now = [10.0]
    times = StageTimes(clock=lambda: now[0])
    assert times.summary().startswith("0 frames in 0.0 s: 0.0 FPS") and times.recent_fps() == 0
    for ms in (100, 300, 200, 200):
        times.add("reading", 1.5)
        with times.stage("running"):
            now[0] += ms / 1000
        times.end_frame()
    assert (times.frames, times.seconds, times.fps) == (4, pytest.approx(0.8), pytest.approx(5.0))
    assert times.recent_fps() == pytest.approx(3 / 0.7)
    assert times.medians_ms() == {"reading": 1.5, "running": pytest.approx(200)} and times.medians_ms(1)["reading"] == 1.5
    assert times.summary() == "4 frames in 0.8 s: 5.0 FPS\nmedian ms of a frame: reading 1.5, running 200.0"
    assert times.to_json()["frames"] == 4
