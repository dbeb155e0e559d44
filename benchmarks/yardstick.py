"""Train a plain hand-made network with the project's own recipe: what a searched network is compared with.

    python -m benchmarks.yardstick --data FOLDER --minutes 20 --run runs/yardstick

1.28 GMAC at 360x480 and 1.37 M parameters with 11 classes: a stem to 1/4, residual rows at 1/8, 1/16 and 1/32 with pooled
context, sum fusion at 1/8, a head at 1/4. It sees the same training part, crops and time as a network of `hyctas-train network`,
is scored on the same splits, and its ONNX file can be timed beside others with `hyctas-bench`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.failures import one_sentence
from export import export_onnx
from export.ranges import Minutes, Seed, argument
from export.target import parse_size
from hyctas.artifacts.runs import Run
from hyctas.cli.show import bar, say
from hyctas.commands.datasets import open_dataset
from hyctas.data import PREPROCESSING, Frames
from hyctas.training.config import Recipe
from hyctas.training.evaluate import estimation_batches, evaluate, reestimate_norms
from hyctas.training.loop import Trainer
from hyctas.training.single import Single


def conv(sources: int, out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, norm, ReLU."""
    return nn.Sequential(nn.Conv2d(sources, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Yardstick(nn.Module):
    """The network; maps (N, 3, H, W) to logits (N, classes, H, W)."""

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(conv(3, w // 2, 2), conv(w // 2, w, 2))
        self.row8 = nn.Sequential(conv(w, 2 * w, 2), Residual(2 * w), Residual(2 * w))
        self.row16 = nn.Sequential(conv(2 * w, 4 * w, 2), Residual(4 * w))
        self.row32 = nn.Sequential(conv(4 * w, 4 * w, 2), Residual(4 * w), Residual(4 * w))
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4 * w, 4 * w, 1), nn.ReLU())
        self.project16, self.project32 = nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(4 * w, 2 * w, 1)
        self.fuse8, self.fuse4 = conv(2 * w, 2 * w), nn.Conv2d(3 * w, 2 * w, 1)
        self.head = nn.Sequential(conv(2 * w, w), nn.Conv2d(w, num_classes, 1))

    def forward_native(self, image: Tensor) -> Tensor:
        """Return logits at stride 4."""
        s4 = self.stem(image)
        s8 = self.row8(s4)
        s16 = self.row16(s8)
        s32 = self.row32(s16)
        s32 = s32 + self.context(s32)
        y = self.fuse8(s8 + _to(self.project16(s16), s8) + _to(self.project32(s32), s8))
        logits: Tensor = self.head(F.relu(self.fuse4(torch.cat([_to(y, s4), s4], 1))))
        return logits

    def forward(self, image: Tensor) -> Tensor:
        return _to(self.forward_native(image), image)


def _to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=argument(Minutes), default=20)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--size", default="360x480", help="size of the exported ONNX file")
    parser.add_argument("--seed", type=argument(Seed), default=0)
    parser.add_argument("--restart", action="store_true")
    arguments = parser.parse_args()
    with one_sentence():
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Train, score and export."""
    data, recipe = open_dataset(arguments.data), Recipe(minutes=arguments.minutes, seed=arguments.seed)
    config = {"recipe": asdict(recipe), "data": data.identity(), "size": arguments.size}
    outputs = ("yardstick.onnx", "yardstick.checkpoint.pt", "scores.json")
    place = Run(arguments.run, "yardstick", config, outputs, restart=arguments.restart)
    if place.done:
        say(f"already done: {place.record['results']}")
        return
    torch.manual_seed(recipe.seed)
    network = Yardstick(data.num_classes)
    frames = Frames(data.source, "train", data.train)
    step = Single(network, recipe, frames, PREPROCESSING)
    trainer = Trainer(network, recipe, place.file("yardstick.checkpoint.pt"))
    with bar("train yardstick") as shown:
        trainer.run(step, lambda p: shown.update(p.share, f"step {p.step}, loss {p.numbers['loss']:.3f}"))
    step.feed.close()
    reestimate_norms(network, estimation_batches(frames, recipe.seed, 8, 8, PREPROCESSING))
    scores = {
        name: evaluate(network, Frames(data.source, split, samples), data.num_classes, PREPROCESSING)
        for name, split, samples in (("choose", "train", data.choose), ("val", "val", data.val))
    }
    export_onnx(network, parse_size(arguments.size), place.file("yardstick.onnx"))
    crops = trainer.step * recipe.batch
    place.finish(crops=crops, scores={name: asdict(score) for name, score in scores.items()})
    say(f"yardstick: {crops} crops, mIoU {scores['choose'].miou:.4f} on the choosing split, {scores['val'].miou:.4f} on val")


if __name__ == "__main__":
    main()
