"""Quantise a network's ONNX file with images, measure what that costs, and keep layers in float until it is little enough."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from export.bench_models import BenchModel, open_models
from export.errors import InvalidInput
from export.files import write_bytes
from export.int8.float_layers import OnStatus, float_layers
from export.int8.loss import Int8Loss, SplitLoss
from export.int8.quantise import PRECISION, Calibrated, calibrated
from export.prediction.segment import Segmenter
from export.runtimes import open_runtime
from export.target import Target
from hyctas.artifacts.bundling import Trained
from hyctas.artifacts.int8_settings import Int8Settings
from hyctas.data import confusion, score
from hyctas.data.cache import resized

Pair = tuple[np.ndarray, np.ndarray | None]
"""An RGB image and, where there is one, its label."""
RANKED_ON = 4
"""Images that layers are ranked on, which takes as many sessions as there are layers."""
AS_IT_STANDS = Target("onnxruntime-cpu", "fp32")
"""Computes an int8 file by its own QuantizeLinear and DequantizeLinear nodes."""


@dataclass(frozen=True)
class Part:
    """Some images of a data set, read one after the other."""

    count: int
    load: Callable[[int], Pair]

    def __iter__(self) -> Iterator[Pair]:
        return (self.load(index) for index in range(self.count))

    def spread(self, most: int) -> Part:
        """Return at most so many of them, evenly spread."""
        if self.count <= most:
            return self
        return Part(most, lambda index: self.load(index * self.count // most))


@dataclass(frozen=True)
class Int8Images:
    """What int8 is made and judged with."""

    name: str
    calibration: Part
    """Ranges are taken from them."""
    judged: Part
    """Layers are chosen by them."""
    reported: Part | None = None
    """Only reported: `val`."""


def quantise_file(
    trained: Trained, path: Path, target: Target, images: Int8Images, settings: Int8Settings, on_status: OnStatus
) -> Int8Loss:
    """Replace an fp32 ONNX file by its int8 model, and say what was lost.

    Args:
        trained: the network of the file; with random weights nothing is judged, and every layer is quantised.
        path: as `export.onnx.exporter.export_onnx` wrote it.
        target: what it is meant for; CPU targets compute it here, for others it is computed as it stands.
        images: to calibrate and judge with.
        settings: how many of them, and what may be lost.
        on_status: is told what is being done.

    Raises:
        InvalidInput: no images, or a network without layers that can be quantised.
        CheckFailed: the bounds cannot be kept.
    """
    judged_by = target if target.device == "cpu" else AS_IT_STANDS
    random = trained.facts.get("weights") == "random"
    fp32 = onnx.load(path)
    size = _size(path, fp32)
    with tempfile.TemporaryDirectory(prefix="hyctas-int8-") as temporary:
        calibration = images.calibration.spread(settings.calibration_images)
        on_status(f"calibrate int8 with {calibration.count} images of {images.name}")
        prepared = (trained.preprocessing.apply(Image.fromarray(image), size) for image, _ in calibration)
        source = calibrated(fp32, ({"image": image} for image in prepared))
        judge = Judge(trained, Path(temporary), path, size, judged_by)
        judged = judge.compare(images.judged.spread(settings.judged_images))
        kept = () if random else float_layers(source, judged.holds(settings), judged.spread(RANKED_ON).agreement, on_status)
        found = source.quantised(kept)
        loss = judged.loss_of(found, source, kept, images.name, calibration.count, None if random else settings)
        if images.reported is not None:
            on_status(f"score int8 on {images.reported.count} images of val")
            reported = judge.compare(images.reported)
            loss = replace(loss, splits={**loss.splits, **reported.split_of(reported.labels(found), "val")})
        found.metadata_props.add(key=PRECISION, value="int8")
        write_bytes(path, found.SerializeToString(deterministic=True))
        return loss


class Judge:
    """Computes labels with an fp32 file and with int8 graphs made of it."""

    def __init__(self, trained: Trained, folder: Path, path: Path, size: tuple[int, int], target: Target) -> None:
        self.trained, self.folder, self.size, self.target = trained, folder, size, target
        self.path = path

    def labels(self, path: Path, part: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
        """Return label maps (H, W) of prepared images (1, 3, H, W)."""
        with open_models([BenchModel("model", path=path)], open_runtime(target, 1), self.folder)[0] as opened:
            segmenter, classes = Segmenter(opened), self.trained.labels.num_classes
            found = []
            for image in part:
                values = segmenter.run(image)
                scores = values if values.dtype.kind in "iu" else values[:, :classes]  # panoptic: centres and offsets follow
                found.append(segmenter.labels(scores).reshape(self.size))
            return found

    def of_graph(self, model: onnx.ModelProto, part: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
        """Return label maps of an int8 graph."""
        file = self.folder / "int8.onnx"
        write_bytes(file, model.SerializeToString())
        return self.labels(file, part, target)

    def compare(self, part: Part) -> _Compared:
        """Prepare images, and compute what fp32 makes of them."""
        images, truths = [], []
        for image, label in part:
            if label is not None:
                image, label = resized(image, label, self.size)
                truths.append(label)
            images.append(self.trained.preprocessing.apply(Image.fromarray(image), self.size))
        return _Compared(self, images, self.labels(self.path, images, AS_IT_STANDS), truths)


@dataclass(frozen=True)
class _Compared:
    """Images with fp32's labels and, where there are any, the true ones."""

    judge: Judge
    images: list[np.ndarray]
    fp32: list[np.ndarray]
    truths: list[np.ndarray]

    def labels(self, model: onnx.ModelProto, target: Target | None = None) -> list[np.ndarray]:
        """Return an int8 graph's labels."""
        return self.judge.of_graph(model, self.images, target or self.judge.target)

    def spread(self, count: int) -> _Compared:
        """Return so many of them, evenly spread."""
        places = range(0, len(self.images), -(-len(self.images) // count))
        images, fp32 = ([images[place] for place in places] for images in (self.images, self.fp32))
        return replace(self, images=images, fp32=fp32, truths=[])

    def agreement(self, model: onnx.ModelProto) -> float:
        """Return the share of pixels with fp32's label."""
        return float(np.mean(self.shares(self.labels(model))))

    def shares(self, labels: Sequence[np.ndarray]) -> list[float]:
        """Return that share of each image."""
        return [float((mine == theirs).mean()) for mine, theirs in zip(labels, self.fp32, strict=True)]

    def miou(self, labels: Sequence[np.ndarray]) -> float:
        """Return the mIoU of label maps against the truth."""
        classes = self.judge.trained.labels.num_classes
        counts = [confusion(truth, found, classes) for truth, found in zip(self.truths, labels, strict=True)]
        return score(np.sum(counts, axis=0)).miou

    def holds(self, settings: Int8Settings) -> Callable[[onnx.ModelProto], bool]:
        """Return what says whether a graph's loss is within the bounds."""
        fp32 = self.miou(self.fp32) if self.truths else 0.0

        def within(model: onnx.ModelProto) -> bool:
            labels = self.labels(model)
            right = not self.truths or fp32 - self.miou(labels) <= settings.max_miou_loss
            return right and float(np.mean(self.shares(labels))) >= settings.min_agreement

        return within

    def split_of(self, labels: Sequence[np.ndarray], name: str) -> dict[str, SplitLoss]:
        """Return the mIoU of fp32 and of an int8 graph's label maps on a split; empty without true labels."""
        if not self.truths:
            return {}
        found = SplitLoss(images=len(self.images), fp32_miou=self.miou(self.fp32), int8_miou=self.miou(labels))
        return {name: found}

    def loss_of(
        self, model: onnx.ModelProto, source: Calibrated, kept: tuple[str, ...], data: str, count: int, bound: Int8Settings | None
    ) -> Int8Loss:
        """Return what a graph loses."""
        labels = self.labels(model)
        shares = self.shares(labels)
        return Int8Loss(
            target=str(self.judge.target), data=data, calibration_images=count, judged_images=len(self.images),
            layers=len(source.layers), float_layers=kept, agreement=float(np.mean(shares)), worst_agreement=min(shares),
            portable_agreement=float(np.mean(self.shares(self.labels(model, AS_IT_STANDS)))),
            splits=self.split_of(labels, "choose"), min_agreement=bound.min_agreement if bound else None,
            max_miou_loss=bound.max_miou_loss if bound and self.truths else None,
        )  # fmt: skip


def _size(path: Path, model: onnx.ModelProto) -> tuple[int, int]:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if len(shape) != 4:
        raise InvalidInput(f"{path}: its input has the shape {shape}; int8 is made of networks that take one image")
    return shape[2], shape[3]
