"""Is another quantiser better than ONNX Runtime's, which hyctas-export uses? NNCF, on one bundle with an int8 model.

    pip install nncf
    python -m benchmarks.int8_quantisers --bundle BUNDLE --data FOLDER [--threads 1] [--out FILE]

NNCF (https://github.com/openvinotoolkit/nncf, post-training quantisation of the ONNX file, its default settings and its preset
"performance") gets the images that the bundle's int8 model was calibrated with. All are scored as they stand, and timed on ONNX
Runtime and OpenVINO, interleaved; nothing else should run. ModelOpt (nvidia-modelopt) needs a GPU's packages and is not
compared.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from benchmarks.failures import one_sentence
from export.bench_models import BenchModel
from export.bench_report import markdown_rows
from export.bench_timing import bench
from export.errors import InvalidInput, Unavailable
from export.files import write_text
from export.int8.quantise import PRECISION
from export.machine import fingerprint
from export.ranges import Threads, argument
from export.target import Target
from hyctas.artifacts.bundling import load_trained
from hyctas.artifacts.int8_files import AS_IT_STANDS, Judge
from hyctas.artifacts.int8_settings import Int8Settings
from hyctas.commands.export_int8 import images_of
from hyctas.data import open_source
from latency.lock import measuring

TARGETS = ("onnxruntime-cpu", "openvino-cpu")
FP32, OURS = "fp32", "ONNX Runtime's, as hyctas-export has it"
PRESETS = {"NNCF": "MIXED", "NNCF, performance": "PERFORMANCE"}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle with model.int8.onnx")
    parser.add_argument("--data", required=True, help="the data set that it was calibrated with, as hyctas-export takes it")
    parser.add_argument("--threads", type=argument(Threads), default=1)
    parser.add_argument("--out", type=Path, help="write the account")
    arguments = parser.parse_args()
    with one_sentence():
        text = compare(arguments.bundle, arguments.data, arguments.threads)
        print(text)
        if arguments.out:
            write_text(arguments.out, text)


def compare(bundle: Path, data: str, threads: int) -> str:
    """Quantise, score and time; return the account as Markdown.

    Raises:
        InvalidInput: the bundle has no int8 model, or the data has no val.
        Unavailable: NNCF is not installed.
    """
    files = {FP32: bundle / "model.onnx", OURS: bundle / "model.int8.onnx"}
    if not files[OURS].exists():
        raise InvalidInput(f"{bundle} has no model.int8.onnx; export it with --target onnxruntime-cpu:int8")
    trained, settings = load_trained(bundle), Int8Settings()
    images = images_of(open_source(data), trained)
    if images.reported is None:
        raise InvalidInput(f"{data} has no val to score with")
    (size,) = [tuple(d.dim_value for d in info.type.tensor_type.shape.dim)[2:] for info in onnx.load(files[FP32]).graph.input]
    calibration = images.calibration.spread(settings.calibration_images)
    prepared = [trained.preprocessing.apply(Image.fromarray(image), size) for image, _ in calibration]
    with tempfile.TemporaryDirectory(prefix="hyctas-int8-") as temporary:
        for number, (name, preset) in enumerate(PRESETS.items()):
            files[name] = Path(temporary) / f"nncf{number}.onnx"
            onnx.save(by_nncf(files[FP32], prepared, preset), files[name])
        judge = Judge(trained, Path(temporary), files[FP32], size, AS_IT_STANDS)
        parts = {"the choosing split": images.judged.spread(settings.judged_images), "val": images.reported}
        mious: dict[str, list[float]] = {name: [] for name in files}
        for part in parts.values():
            compared = judge.compare(part)
            for name, file in files.items():
                mious[name].append(compared.miou(judge.labels(file, compared.images, AS_IT_STANDS)))
        times = {target: time_files(target, files, threads) for target in TARGETS}
    counts = " and ".join(f"{part.count} images of {name}" for name, part in parts.items())
    rows = [["quantiser", *(f"mIoU %, {name}" for name in parts), *(f"ms, {target}" for target in TARGETS)]]
    for name in files:
        rows.append([name, *(f"{100 * miou:.2f}" for miou in mious[name]), *(f"{times[target][name]:.2f}" for target in TARGETS)])
    machine = fingerprint()
    return (
        f"# int8 by another quantiser\n\nPrinted by `python -m benchmarks.int8_quantisers`: {machine['cpu']}, {threads} "
        f"thread{'s' if threads > 1 else ''}, {size[0]}x{size[1]}; {counts}; medians, all interleaved.\n\n"
        f"{markdown_rows(rows)}\n"
    )


def by_nncf(path: Path, prepared: Sequence[np.ndarray], preset: str) -> onnx.ModelProto:
    """Return the int8 graph that NNCF makes of an fp32 file.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        nncf = importlib.import_module("nncf")  # no dependency of this project
    except ImportError as error:
        raise Unavailable("NNCF", str(error), "pip install nncf") from None
    dataset = nncf.Dataset(prepared, lambda image: {"image": image})
    model: onnx.ModelProto = nncf.quantize(
        onnx.load(path), dataset, preset=getattr(nncf.QuantizationPreset, preset), subset_size=len(prepared)
    )
    model.metadata_props.add(key=PRECISION, value="int8")
    return model


def time_files(runtime: str, files: dict[str, Path], threads: int) -> dict[str, float]:
    """Return the median latency of each file in milliseconds, interleaved; the fp32 file has nothing that is int8."""
    with measuring():
        report = bench([BenchModel(name, path=file) for name, file in files.items()], Target(runtime, "int8"), threads)
    return {result.name: result.median_ms for result in report.models}


if __name__ == "__main__":
    main()
