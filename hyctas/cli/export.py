"""hyctas-export: write a trained network as an ONNX file, a torch.export file, a TensorRT engine or a bundle, with parity proof.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from export.ranges import Classes, Settings, Threads
from hyctas.artifacts.int8_settings import Int8Settings
from hyctas.cli.entry import command
from hyctas.engine.settings import EngineSettings


@dataclass(frozen=True, kw_only=True)
class ExportJob(Settings):
    """What hyctas-export writes, of which network."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """model.onnx, model.pt2, model.engine, or a folder (no suffix, or a / at its end) for a whole bundle."""
    network: tuple[Path, ...] = ()
    """Run folder, genotype JSON, published:S (M, L), or bundle; 2 to 4, most accurate first, make a ladder; default: newest run."""
    checkpoint: Path | None = None
    """Weights of the released code (.pth) for a published network."""
    target: str | None = None
    """What it is meant for, for instance onnxruntime-cpu:fp32; default: the best available one that runs such a file."""
    output: Literal["native", "logits", "labels", "panoptic"] = "native"
    """native: logits at the head's stride; logits: at image size; labels: their argmax; panoptic: centres and offsets too."""
    size: str | None = None
    """Image size, HEIGHTxWIDTH; default: the one that the run or bundle was made for."""
    classes: Classes | None = None
    """Number of classes of a genotype; default 19."""
    data: str | None = None
    """Images that int8 is calibrated with: a data set (see hyctas-train) or a folder; default: what the run was trained on."""
    threads: Threads = 1
    """Threads that it is meant to run with, as the manifest notes and the printed hyctas-bench command uses."""
    random_weights: bool = False
    """Export a genotype with random weights: to time it, not to segment with it."""
    rebuild: bool = False
    """Rebuild an engine that does not fit this machine, as its manifest says, from its bundle or the ONNX file beside it."""
    gpu: str | None = None
    """GPUs that a tensorrt-rtx engine is for, for instance sm_86,sm_89,sm_120; none of them has to be in this machine."""
    cuda_backend: Literal["torch", "cuda-bindings", "pycuda"] | None = None
    """Library that talks to CUDA for an engine; default: the first that works."""
    build: tyro.conf.Fixed[EngineSettings] = field(default_factory=EngineSettings)
    """How an engine is built, but for `cuda_backend`."""
    int8: tyro.conf.Fixed[Int8Settings] = field(default_factory=Int8Settings)
    """How an int8 file is made."""

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {"engine": ("rebuild", "gpu", "cuda_backend")}

    def engine(self) -> EngineSettings:
        """Return how an engine is built."""
        return replace(self.build, cuda_backend=self.cuda_backend)


def main() -> None:
    """Run the command line."""
    command(
        _run, ExportJob, "Write a network as a file or bundle that runs on a device, and prove that it is right.",
        name="hyctas-export", example="runs/mine/bundle --network runs/mine",
    )  # fmt: skip


def _run(job: ExportJob) -> None:
    from hyctas.commands.export import export_network

    export_network(job)


if __name__ == "__main__":
    main()
