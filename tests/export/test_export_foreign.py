"""Foreign ONNX files: timed whatever they take, refused with a sentence where they are damaged, no output guessed silently."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export import bench_timing as bench_module
from export.bench_models import BenchModel
from export.bench_report import BenchResult
from export.bench_timing import bench
from export.errors import CorruptFile, InvalidInput
from export.onnx.foreign import load_graph, load_model, whole_bytes
from export.onnx.static_shape import static_onnx
from export.runtime import TensorSpec
from export.runtimes import open_runtime
from export.target import Target
from export.tensor_layout import label_output
from tests.export import foreign_files as foreign

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
TARGETS = [
    Target("onnxruntime-cpu", "fp32"),
    pytest.param(Target("openvino-cpu", "fp32"), marks=pytest.mark.skipif(not HAS_OPENVINO, reason="no openvino")),
]
ORT = Target("onnxruntime-cpu", "fp32")
WHITE = (1, 3, 8, 12)


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "SLICE_S", 0.002)


def timed(path: Path, target: Target = ORT, mode: str = "model", size: tuple[int, int] | None = None) -> BenchResult:
    report = bench([BenchModel("m", path, size=size)], target, 1, seconds=0.02, warmup_s=0.0, mode=mode)
    return report.models[0]


def scalar(path: Path) -> Path:
    """An image, and how much to add to it."""
    nodes = [helper.make_node("Cast", ["more"], ["m"], to=TensorProto.FLOAT), helper.make_node("Add", ["pixels", "m"], ["x"])]
    inputs = [foreign.info("pixels", [1, 3, 8, 12]), foreign.info("more", [], TensorProto.INT64)]
    weights = [foreign.weight("w", foreign.WEIGHTS)]
    return foreign.save(path, [*nodes, foreign.conv("x")], inputs, [foreign.info("mask", [1, 5, 8, 12])], weights)


def no_image(path: Path) -> Path:
    node = helper.make_node("Relu", ["x"], ["y"])
    return foreign.save(path, [node], [foreign.info("x", ["N", 7])], [foreign.info("y", ["N", 7])])


CASES: dict[str, tuple[Callable[[Path], Path], str | None, str]] = {
    "fp16": (lambda p: foreign.cast_input(p, TensorProto.FLOAT16), "8x12", "pixels: float16 (1, 3, 8, 12)"),
    "uint8": (lambda p: foreign.cast_input(p, TensorProto.UINT8), "8x12", "pixels: uint8 (1, 3, 8, 12)"),
    "channels last": (foreign.channels_last, "8x12", "pixels: float32 (1, 8, 12, 3)"),
    "uint8, channels last": (
        lambda p: foreign.channels_last(p, kind=TensorProto.UINT8), "8x12", "pixels: uint8 (1, 8, 12, 3)",
    ),
    "batch 4": (lambda p: foreign.classes(p, (4, 3, 8, 12)), "8x12", "pixels: float32 (4, 3, 8, 12)"),
    "two images": (foreign.two_images, "8x12", "before: float32 (1, 3, 8, 12), after: float32 (1, 3, 8, 12)"),
    "a number beside": (scalar, "8x12", "more: int64 ()"),
    "no image": (no_image, None, "x: float32 (1, 7)"),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_whatever_it_takes_is_timed(tmp_path: Path, case: str, target: Target) -> None:
    """By random inputs, said in the report; a mode that needs pictures is refused, with the one that does not."""
    make, size, note = CASES[case]
    path = make(tmp_path / "m.onnx")
    result = timed(path, target)
    assert result.size == size and result.median_ms > 0
    assert any("random inputs" in text and note in text for text in result.notes)
    for mode in ("labels", "end-to-end"):
        with pytest.raises(InvalidInput, match="Time it in mode model"):
            timed(path, target, mode)


def test_a_batch_is_said(tmp_path: Path) -> None:
    assert any("a run computes 4 images" in note for note in timed(foreign.classes(tmp_path / "m.onnx", (4, 3, 8, 12))).notes)


@pytest.mark.parametrize(
    ("shape", "size", "fixed"),
    [
        (("N", 3, "H", "W"), (16, 24), (1, 3, 16, 24)),
        (("N", "C", "H", "W"), (16, 24), (1, 3, 16, 24)),
        (("N", "H", "W", 3), (16, 24), (1, 16, 24, 3)),
        ((2, 3, 8, "W"), (8, 24), (2, 3, 8, 24)),
        (("N", 3, 8, 12), None, (1, 3, 8, 12)),
        (("N", 1, 8, 12), None, (1, 1, 8, 12)),
        (("N", 7), None, (1, 7)),
    ],
    ids=str,
)
def test_dynamic_shapes(tmp_path: Path, shape: foreign.Shape, size: tuple[int, int] | None, fixed: tuple[int, ...]) -> None:
    path = foreign.save(
        tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [foreign.info("x", shape)], [foreign.info("y", shape)]
    )
    copy, notes = static_onnx(path, size, tmp_path / "there")
    assert notes and f"fixed to {fixed}" in notes[0] and copy.parent == tmp_path / "there"
    with open_runtime(ORT, 1).load_file(copy) as session:
        assert session.inputs[0].shape == fixed and session.outputs[0].shape == fixed


def test_shapes_that_cannot_be_fixed(tmp_path: Path) -> None:
    def refused(shape: foreign.Shape | None, size: tuple[int, int] | None, reason: str) -> None:
        path = foreign.save(
            tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [foreign.info("x", shape)], [foreign.info("y", shape)]
        )
        with pytest.raises(InvalidInput, match=reason):
            static_onnx(path, size, tmp_path)

    refused(("N", 3, "H", "W"), None, r"dynamic shape \(N, 3, H, W\); give a size")
    refused(("N", "H", "W", 3), None, "give a size")
    refused((1, 3, 8, "W"), (16, 24), "made for 8x24; asked for 16x24")
    refused((1, 8, 12, 3), (16, 24), "made for 8x12; asked for 16x24")
    refused((1, "L"), (16, 24), "make_dynamic_shape_fixed --input_name x --input_shape 1,N")
    refused(None, (16, 24), "without a shape")
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceLength", ["x"], ["y"])
    path = foreign.save(tmp_path / "s.onnx", [node], [sequence], [foreign.info("y", [], TensorProto.INT64)])
    with pytest.raises(InvalidInput, match="of the kind sequence"):
        static_onnx(path, None, tmp_path)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": ("none.bin", {}, "none.bin: is missing"),
    "truncated": ("short.bin", {}, "short.bin: is truncated: .* bytes 0 to 60, and it has 20"),
    "behind the end": ("w.bin", {"offset": 40, "length": 60}, "w.bin: is truncated"),
    "outside": ("../outside.bin", {}, "outside of its own folder, in '../outside.bin'"),
    "absolute": ("{outside}", {}, "outside of its own folder"),
    "as Windows writes it": ("C:\\w.bin", {}, "outside of its own folder"),
    "by a link": ("link.bin", {}, "outside of its own folder, in 'link.bin'"),
    "by links in a circle": ("circle.bin", {}, "links stand in a circle|is missing"),
    "a folder": ("folder", {}, "is missing"),
    "unnamed": ("", {}, "does not name it"),
    "a zero byte": ("w\0.bin", {}, "does not name it"),
    "before the start": ("w.bin", {"offset": -4, "length": 60}, "from byte -4 on"),
    "no numbers": ("w.bin", {"offset": "a"}, "something else than numbers: {'offset': 'a'}"),
    "another length": ("w.bin", {"length": 20}, r"20 bytes of w.bin from byte 0 on; its shape \(5, 3, 1, 1\) takes 60"),
}


@pytest.mark.parametrize(("case", "shape"), [*((case, (1, 3, 8, 12)) for case in WRONG), ("truncated", ("N", 3, "H", "W"))])
def test_weights_in_other_files_that_cannot_be_read(tmp_path: Path, case: str, shape: foreign.Shape) -> None:
    """Whether ONNX Runtime, OpenVINO or this package reads it: the file and what to do are named."""
    location, more, reason = WRONG[case]
    folder, outside = tmp_path / "models", tmp_path / "outside.bin"
    (folder / "folder").mkdir(parents=True)
    (folder / "w.bin").write_bytes(foreign.WEIGHTS.tobytes())
    (folder / "short.bin").write_bytes(foreign.WEIGHTS.tobytes()[:20])
    outside.write_bytes(foreign.WEIGHTS.tobytes())
    (folder / "link.bin").symlink_to(outside)
    (folder / "circle.bin").symlink_to("circle.bin")
    path = foreign.external(folder / "m.onnx", location.format(outside=outside), shape, **more)
    for read in (load_graph, load_model, lambda p: timed(p, size=(8, 12))):
        with pytest.raises(CorruptFile, match=reason):
            read(path)  # type: ignore[operator]
    if shape == (1, 3, 8, 12):
        for parameter in TARGETS[: 1 + HAS_OPENVINO]:
            target = parameter if isinstance(parameter, Target) else parameter.values[0]
            with pytest.raises(CorruptFile, match=reason):
                open_runtime(target, 1).load_file(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_weights_in_other_files(tmp_path: Path, target: Target) -> None:
    """They are read wherever they are good, links of a download's cache included, and the report says that no hash covers them."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_bytes(b"1234" + foreign.WEIGHTS.tobytes())
    for name, shape in (("static", (1, 3, 8, 12)), ("dynamic", ("N", 3, "H", "W"))):
        model = foreign.external(store / f"{name}.onnx", "w.bin", shape, offset=4, length=60)
        (tmp_path / f"{name}.onnx").symlink_to(model)
    (store / "w.bin").symlink_to(store / "blob")
    os.link(store / "blob", tmp_path / "w.bin")
    for name in ("static", "dynamic"):
        path = tmp_path / f"{name}.onnx"
        notes = timed(path, target, size=(8, 12)).notes
        assert any("keeps weights in w.bin, which its sha256 does not cover" in note for note in notes)
        single = onnx.load_from_string(whole_bytes(path))
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(single.graph.initializer[0]), foreign.WEIGHTS)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("first", [False, True])
def test_an_output_whose_shape_depends_on_the_image(tmp_path: Path, target: Target, first: bool) -> None:
    path = foreign.with_positions(tmp_path / "m.onnx", first)
    for mode in ("model", "labels", "end-to-end"):
        notes = timed(path, target, mode).notes
        assert any("'positions' is known after a run alone" in note for note in notes)
        assert mode == "model" or any("labels come from 'mask'" in note for note in notes)
    with open_runtime(target, 1).load_file(path) as session:
        counts = []
        for value in (0.0, 1.0):  # the same buffers hold results of both sizes
            session.bind({"pixels": np.full(WHITE, value, np.float32)})
            session.step()
            results = session.results()  # type: ignore[attr-defined]
            counts.append(results[0 if first else 1].shape[1])
        assert counts == [0, 2 * 96]


def test_a_model_that_fails_when_it_runs(tmp_path: Path) -> None:
    """Its own words instead of a traceback: a reshape that does not fit is found by a run alone."""
    nodes = [
        helper.make_node("Shape", ["pixels"], ["s"]),
        helper.make_node("NonZero", ["pixels"], ["z"]),
        helper.make_node("Reshape", ["z", "s"], ["mask"]),
    ]
    output = foreign.info("mask", ["a", "b", "c", "d"], TensorProto.INT64)
    path = foreign.save(tmp_path / "m.onnx", nodes, [foreign.info("pixels", WHITE)], [output])
    with pytest.raises(InvalidInput, match=r"model 'm': .* does not run it: .*Reshape"):
        timed(path)


METADATA = [
    {"labels": '{"colours": "red"}', "preprocessing": '{"mean": [1], "std": [0]}'},
    {"labels": '{"colours": [[1, 2], [3]]}', "preprocessing": "[" * 100_000},
    {"labels": '{"colours": [[1, 2, 300]]}', "preprocessing": '{"mean": [1' + "0" * 400 + ', 0, 0], "std": [1, 1, 1]}'},
]


@pytest.mark.parametrize("metadata", METADATA)
def test_foreign_metadata_stops_no_timing(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = foreign.classes(tmp_path / "m.onnx", metadata=metadata)
    for mode in ("model", "end-to-end"):
        notes = timed(path, mode=mode).notes
        assert any("metadata preprocessing is not of hyctas" in note for note in notes)
        assert any("metadata labels has no RGB colours" in note for note in notes)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_metadata_that_is_no_text(tmp_path: Path, target: Target) -> None:
    path = foreign.classes(tmp_path / "m.onnx", metadata={"labels": "person"})
    path.write_bytes(path.read_bytes().replace(b"person", b"pers\xff\xff"))
    assert timed(path, target, "labels").median_ms > 0


def image(value: float) -> np.ndarray:
    return np.full(WHITE, value, np.float32)


def test_channels_at_the_end_are_found(tmp_path: Path) -> None:
    """(1, 8, 12, 5) of an 8x12 image is no map of 8 classes at 12x5."""
    path = foreign.scores_last(tmp_path / "m.onnx")
    assert any("read as (1, h, w, C)" in note for note in timed(path, mode="labels").notes)
    with open_runtime(ORT, 1).load_file(path) as session:
        output = label_output(session.outputs, (8, 12))
        assert output is not None and output.channels_last
        labels = output.labels(session.run({"pixels": image(1.0)})[0], (8, 12))
    assert labels.shape == (8, 12) and (labels == 4).all()


@pytest.mark.parametrize(("last", "read"), [("Sigmoid", "a probability"), ("Identity", "a logit")])
def test_one_channel_is_a_mask(tmp_path: Path, last: str, read: str) -> None:
    path = foreign.sigmoid(tmp_path / "m.onnx", last)
    assert any(f"read as {read}" in note for note in timed(path, mode="end-to-end").notes)
    with open_runtime(ORT, 1).load_file(path) as session:
        values = session.run({"pixels": image(1.0)})[0]
        output = label_output(session.outputs, (8, 12))
        assert output is not None
        labels = output.calibrated(values).labels(values, (8, 12))
    assert (labels[:, :6] == 1).all() and (labels[:, 6:] == 0).all()


@pytest.mark.parametrize(
    ("spec", "kind", "last"),
    [
        (TensorSpec("y", (1, 19, 45, 60)), "scores", False),
        (TensorSpec("y", (1, 45, 60, 19)), "scores", True),
        (TensorSpec("y", (1, 19, 45, 61)), "scores", False),  # not ceil(480 / 8), and nearer to it than (19, 45)
        (TensorSpec("y", (1, 19, 120, 160), "int8"), "scores", False),
        (TensorSpec("y", (1, 360, 480, 1), "float16"), "mask", True),
        (TensorSpec("y", (1, 360, 480)), "mask", False),
        (TensorSpec("y", (1, 360, 480), "int64"), "labels", False),
        (TensorSpec("y", (1, 1, 360, 480), "uint8"), "labels", False),
        (TensorSpec("y", (1, 360, 480, 1), "int32"), "labels", True),
        (TensorSpec("y", (1, 19, 19, 19)), None, False),
        (TensorSpec("y", (1, 19, 60, 45)), None, False),
        (TensorSpec("y", (2, 19, 45, 60)), None, False),
        (TensorSpec("y", (1, 19)), None, False),
        (TensorSpec("y", (1, 19, 0, 0)), None, False),
    ],
    ids=str,
)
def test_what_an_output_is(spec: TensorSpec, kind: str | None, last: bool) -> None:
    found = label_output([TensorSpec("other", (1, 3)), spec], (360, 480))
    assert (found.kind if found else None) == kind
    if found is not None:
        assert found.channels_last == last and found.index == 1


def test_an_output_that_may_be_either_is_noted(tmp_path: Path) -> None:
    found = label_output([TensorSpec("y", (1, 8, 8, 8))], (8, 8))
    assert found is not None and not found.channels_last and "may be" in found.note
    path = foreign.save(
        tmp_path / "m.onnx", [helper.make_node("Reshape", ["x", "s"], ["y"])], [foreign.info("x", WHITE)],
        [foreign.info("y", [1, 3, 96])], [foreign.weight("s", np.array([1, 3, 96]))],
    )  # fmt: skip
    with pytest.raises(InvalidInput, match=r"its outputs are y: float32 \(1, 3, 96\)\. Time it in mode model"):
        timed(path, mode="labels")


def test_torn_files_of_any_suffix(tmp_path: Path) -> None:
    path = foreign.classes(tmp_path / "M.ONNX")
    assert timed(path).file == "M.ONNX"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CorruptFile, match=r"M\.ONNX: is not a whole ONNX file"):
        timed(path)


def test_a_dimension_whose_name_is_no_text(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    path = foreign.save(tmp_path / "m.onnx", [node], [foreign.info("x", [1, 3, "h", "WIDTH"])], [foreign.info("y", [1, 3, 8, 8])])
    path.write_bytes(path.read_bytes().replace(b"WIDTH", b"\xf7IDTH"))
    with pytest.raises(CorruptFile, match="a name of an input, an output or a dimension is no text"):
        timed(path, size=(8, 8))


class Foreign(torch.nn.Module):
    """Gives a dict, as torchvision's segmentation networks do."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": torch.nn.functional.interpolate(x, scale_factor=0.5), "aux": x}


class Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return x + 1, [x]


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


TORCH = Target("torch-cpu", "fp32")


def pt2(path: Path, module: torch.nn.Module, *inputs: torch.Tensor, dynamic: Any = None) -> Path:
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=dynamic), path)
    return path


def test_foreign_pt2_files(tmp_path: Path) -> None:
    x = torch.zeros(WHITE)
    path = pt2(tmp_path / "D.pt2", Foreign(), x).rename(tmp_path / "D.PT2")
    result = timed(path, TORCH, "labels")
    assert any("labels come from 'y0'" in note for note in result.notes) and result.file == "D.PT2"
    assert any("random inputs" in note for note in timed(pt2(tmp_path / "two.pt2", Add(), x, x), TORCH).notes)


def test_pt2_files_that_cannot_be_timed(tmp_path: Path) -> None:
    x = torch.zeros(WHITE)
    path = pt2(tmp_path / "d.pt2", torch.nn.ReLU(), x, dynamic=({2: torch.export.Dim("h", min=2, max=64)},))
    with pytest.raises(InvalidInput, match="export it without dynamic_shapes"):
        timed(path, TORCH)
    with pytest.raises(InvalidInput, match="bfloat16"):
        timed(pt2(tmp_path / "b.pt2", torch.nn.ReLU(), x.bfloat16()), TORCH)
    with pytest.raises(InvalidInput, match="tensors alone can be read"):
        timed(pt2(tmp_path / "n.pt2", Nested(), x), TORCH)
