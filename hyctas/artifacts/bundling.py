"""Load a network from a run folder, bundle or genotype, and write it as a bundle or one file, with the proof that it is right."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from PIL import Image

from export.bundle.bundle import BundleReport, read_bundle, write_bundle
from export.bundle.imaging import Preprocessing
from export.bundle.manifest import FORMAT_VERSION, Manifest, versions
from export.bundle.manifest import NAME as BUNDLE_MARK
from export.claims import building_folder
from export.codec import Size, decode
from export.errors import CorruptFile, Give, InvalidInput, LeaveOut, Perform
from export.files import check_own, read_json, sha256, write_bytes, write_json
from export.target import Target, format_size, parse_size
from hyctas.arch.genotype import Genotype
from hyctas.artifacts.choice import read_genotype
from hyctas.artifacts.runs import check_output, recorded_preprocessing
from hyctas.attention import decompositions
from hyctas.data import PREPROCESSING, Labels, default_colours
from hyctas.data.metric import SCORES_VERSION, Scores
from hyctas.network import Network, build, load_weights, weights_bytes
from hyctas.published.spec import is_source

if TYPE_CHECKING:
    from export.parity import ParityReport

T = TypeVar("T")
RUN_FILES = ("network.safetensors", "genotype.json", "labels.json")
RELEASED_PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""ImageNet's, which the released training code normalises with."""
PROOF = {".onnx": Target("onnxruntime-cpu", "fp32"), ".pt2": Target("torch-cpu", "fp32")}
"""Kinds of files that can be written, and where each is compared with PyTorch; compiled ones are on their own target."""
FP32_LIMITS, HALF_LIMITS = (1e-3, 0.999), (0.5, 0.95)
"""Largest error in standard deviations, and share of pixels that must keep their label; the latter of compiled fp16 and bf16."""


@dataclass(frozen=True)
class Trained:
    """A network with its weights, and what a user of it has to know."""

    network: Network
    genotype: Genotype
    labels: Labels
    size: tuple[int, int] | None
    """(H, W) that it was made for, where that is known."""
    preprocessing: Preprocessing = PREPROCESSING
    """What its images need."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For manifests: genotype id, whether the weights are trained or random, what they started from, and the scores where known."""


@dataclass(frozen=True)
class FileReport:
    """What `write_file` wrote."""

    path: Path
    manifest: Path
    size_bytes: int
    parity: ParityReport


def load_trained(
    source: Path, classes: int | None = None, *, random_weights: bool = False, checkpoint: Path | None = None
) -> Trained:
    """Load a network from a run folder, a bundle (every file but its engine compared with its hash), or a genotype file.

    Args:
        source: RUN, BUNDLE/, GENOTYPE.json, or published:NAME.
        classes: number of classes: for a genotype (default 19), and a check for the others.
        random_weights: build a genotype with weights from a fixed seed: good for timing, not for segmenting.
        checkpoint: weights of the released code, for a published genotype.

    Raises:
        InvalidInput: nothing of that kind there, a file of a run is missing, or the numbers of classes differ.
        CorruptFile: a file is damaged, or the weights belong to another genotype.
    """
    if checkpoint is not None:
        if source.is_dir() or random_weights:
            raise InvalidInput("a checkpoint of the released code goes with a published network, without random weights",
                               Give("network", "published:S"))  # fmt: skip
        trained = _from_checkpoint(read_genotype(source), checkpoint)
        return _checked_classes(trained, source, classes)
    if is_source(str(source)):
        return _from_genotype(source, 19 if classes is None else classes, random_weights)
    if not source.exists():
        raise InvalidInput(f"no such file or folder: {source}; give a run folder, a bundle, a genotype (.json) or published:S")
    if not source.is_dir():
        return _from_genotype(source, 19 if classes is None else classes, random_weights)
    if random_weights:
        raise InvalidInput(f"random weights are for a genotype file; {source} has its own", LeaveOut(("random_weights",)))
    trained = _from_bundle(source) if (source / BUNDLE_MARK).exists() else _from_run(source)
    return _checked_classes(trained, source, classes)


def weights_file(folder: Path) -> Path:
    """Return where the weights of a bundle, or else of a run's trained network, are."""
    return folder / ("weights.safetensors" if (folder / BUNDLE_MARK).exists() else "network.safetensors")


def _checked_classes(trained: Trained, source: Path, classes: int | None) -> Trained:
    if classes not in (None, trained.labels.num_classes):
        raise InvalidInput(f"{source} has {trained.labels.num_classes} classes, asked for {classes}", LeaveOut(("classes",)))
    return trained


def _from_checkpoint(genotype: Genotype, path: Path) -> Trained:
    from hyctas.published import load_checkpoint
    from hyctas.published.checkpoint import read_checkpoint

    state = read_checkpoint(path)
    module = load_checkpoint(genotype, state, auxiliary=any("_head_aux" in name for name in state))
    network = module.network.finished()
    facts = {"genotype": genotype.id, "weights": "released checkpoint", "checkpoint_sha256": sha256(path)}
    labels = _numbered(network.num_classes)
    return Trained(network.eval(), network.genotype, labels, None, RELEASED_PREPROCESSING, facts)


def _numbered(classes: int) -> Labels:
    return Labels(tuple(f"class {i}" for i in range(classes)), default_colours(classes))


def _from_genotype(path: Path, classes: int, random_weights: bool) -> Trained:
    if path.suffix != ".json" and not is_source(str(path)):
        raise InvalidInput(f"{path} is no genotype (.json); give that, a run folder, or a bundle's folder")
    genotype = read_genotype(path)
    if not random_weights:
        raise InvalidInput(
            f"{path} is a genotype, which has no weights: give the run that trained it or a bundle",
            Give("random_weights", purpose="export it for timing only"),
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(genotype, classes)
    facts = {"genotype": genotype.id, "weights": "random"}
    return Trained(network.eval(), genotype, _numbered(classes), None, facts=facts)


def _from_bundle(folder: Path) -> Trained:
    bundle = read_bundle(folder, with_engine=False)
    genotype, labels = read_genotype(folder / "genotype.json"), decode(Labels, folder / "labels.json")
    facts = {"weights": "trained", **bundle.manifest.extra, "genotype": genotype.id}
    network = _with_weights(genotype, labels, bundle.weights)
    return Trained(network, genotype, labels, bundle.manifest.size, bundle.preprocessing, facts)


def _from_run(folder: Path) -> Trained:
    for name in RUN_FILES:
        if not (folder / name).is_file():
            raise InvalidInput(
                f"{folder} holds neither {BUNDLE_MARK} (a bundle) nor {name} (a run with a trained network)",
                Perform("train network", {"run": folder}),
            )
    for name in (*RUN_FILES, "scores.json"):
        if (folder / name).exists():
            check_output(folder / name, "train-network")
    genotype, labels = read_genotype(folder / "genotype.json"), decode(Labels, folder / "labels.json")
    network = _with_weights(genotype, labels, folder / "network.safetensors")
    facts: dict[str, Any] = {"genotype": genotype.id, "weights": "trained"}
    config = _read(_Record, folder / "train-network.json").config
    if config.init is not None:
        facts["init"] = config.init
    if (folder / "scores.json").exists():
        scores = decode(Scores, folder / "scores.json", SCORES_VERSION).by_split
        facts["miou"] = {split: round(scores[split].miou, 4) for split in sorted(scores)}
    preprocessing = recorded_preprocessing(folder / "train-network.json")
    return Trained(network, genotype, labels, _run_size(folder, config), preprocessing, facts)


def _with_weights(genotype: Genotype, labels: Labels, path: Path) -> Network:
    from safetensors import SafetensorError, safe_open

    network = build(genotype, labels.num_classes)
    load_weights(network, path)
    try:
        with safe_open(path, "pt") as opened:
            written_for = (opened.metadata() or {}).get("genotype", genotype.id)
    except SafetensorError as error:
        raise CorruptFile(path, f"not a whole safetensors file ({error})") from None
    if written_for != genotype.id:  # equal shapes do not make equal networks: an activation may differ
        raise CorruptFile(path, f"was written for the genotype {written_for}; the one beside it is {genotype.id}")
    return network.eval()


@dataclass(frozen=True)
class _Sized:
    """What may say a size, in the files of a run."""

    OPEN: ClassVar = True
    size: Size | None = None

    @classmethod
    def before_decoding(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Take HEIGHTxWIDTH, too."""
        return {**value, "size": list(parse_size(value["size"]))} if isinstance(value.get("size"), str) else value


@dataclass(frozen=True)
class _Config(_Sized):
    recipe: _Sized = _Sized()
    data: _Sized = _Sized()
    init: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Record:
    OPEN: ClassVar = True
    config: _Config = _Config()


def _run_size(folder: Path, trained: _Config) -> tuple[int, int] | None:
    """Return the size that a run was made for: the search's, else the training images', else the profile's."""
    profile = _read(_Record, folder / "profile.json").config
    sizes = (_read(_Sized, folder / "pareto.json").size, trained.recipe.size, profile.size, trained.data.size)
    return next((size for size in sizes if size is not None), None)


def _read(kind: type[T], path: Path) -> T:
    return decode(kind, path) if path.exists() else kind()


def bundle_network(
    trained: Trained,
    folder: Path,
    size: tuple[int, int],
    output: str = "native",
    target: str = "onnxruntime-cpu:fp32",
    examples: Sequence[np.ndarray] = (),
    extra: Mapping[str, Any] | None = None,
    add: Callable[[Path], None] | None = None,
) -> BundleReport:
    """Write a network as a bundle, or replace an older bundle whole.

    Args:
        trained: the network.
        folder: the bundle.
        size: (H, W) of its input; any size works.
        output: `native`, `logits`, `labels` or `panoptic`.
        target: what it is meant for.
        examples: RGB images (h, w, 3) uint8 that parity is checked on besides random ones.
        extra: noted in the manifest besides the facts of `trained`.
        add: as `export.bundle.bundle.write_bundle` takes it.

    Raises:
        CheckFailed: the exported model does not compute what the network computes.
        InvalidInput: `folder` holds something that is not a bundle.
        Unavailable: onnxruntime is missing, so parity cannot be proven.
    """
    return write_bundle(
        folder, module=trained.network, size=size, labels=trained.labels.to_json(), preprocessing=trained.preprocessing.to_json(),
        genotype_json=trained.genotype.to_json(), weights=weights_bytes(trained.network, {"genotype": trained.genotype.id}),
        output=output, target=target, extra={**trained.facts, **(extra or {})}, examples=examples, add=add,
    )  # fmt: skip


def write_file(
    trained: Trained,
    path: Path,
    size: tuple[int, int],
    output: str = "native",
    target: str = "onnxruntime-cpu:fp32",
    examples: Sequence[np.ndarray] = (),
    extra: Mapping[str, Any] | None = None,
    change: Callable[[Path], dict[str, Any]] | None = None,
) -> FileReport:
    """Write a network as `x.onnx` or `x.pt2` (torch.export, BN folded) with `x.<suffix>.manifest.json` beside it.

    The files take their places when parity is proven. The arguments are those of `bundle_network`; ONNX metadata, and the extra
    files inside a `.pt2`, are those of a bundle's model. `change` may replace the file once it is proven, and returns what is to
    be noted of that.

    Raises:
        CheckFailed: the file does not compute what the network computes.
        InvalidInput: another suffix, or the path is taken by a file that was not written here.
        Unavailable: onnxruntime is missing, so parity cannot be proven.
    """
    with drafted_file(trained, path, size, output, target, examples, extra, change) as report:
        return report


@contextmanager
def drafted_file(
    trained: Trained,
    path: Path,
    size: tuple[int, int],
    output: str,
    target: str,
    examples: Sequence[np.ndarray],
    extra: Mapping[str, Any] | None,
    change: Callable[[Path], dict[str, Any]] | None = None,
) -> Iterator[FileReport]:
    """Write and prove what `write_file` does, and let it take its place once the block has ended without an exception."""
    kind = path.suffix.lower()
    if kind not in PROOF:
        raise InvalidInput(f"{path}: one file is written as {' or '.join(PROOF)}")
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with building_folder(path) as temporary:
        draft = temporary / path.name
        _write_model(trained, draft, size, output, Target.parse(target))
        parity = prove(trained, draft, proof_target(path, Target.parse(target)), size, output, examples)
        parity.raise_if_failed()
        changed = change(draft) if change is not None else {}
        size_bytes = draft.stat().st_size
        manifest = Manifest(
            target=target, size=size, output=output, versions=versions(),
            files={path.name: {"sha256": sha256(draft), "size_bytes": size_bytes}},
            extra={**trained.facts, **(extra or {}), "parity": parity.to_json(), **changed},
        )  # fmt: skip
        draft_manifest = manifest_of(draft)
        write_json(draft_manifest, manifest.to_json())
        yield FileReport(path, manifest_of(path), size_bytes, parity)
        os.replace(draft, path)
        os.replace(draft_manifest, manifest_of(path))


def prove(
    trained: Trained, path: Path, target: Target, size: tuple[int, int], output: str, examples: Sequence[np.ndarray] = ()
) -> ParityReport:
    """Compare a file on a target with the network in PyTorch.

    Raises:
        Unavailable: the target cannot run here.
    """
    from export.parity import check_parity
    from export.runtimes import open_runtime

    images = [trained.preprocessing.apply(Image.fromarray(example), size) for example in examples]
    tolerance, agreement = FP32_LIMITS if target.precision == "fp32" else HALF_LIMITS
    with open_runtime(target, threads=1).load_file(path) as session:
        # parity reads from the output's name what to compare with; a .pt2 file does not keep the name
        session.outputs = (replace(session.outputs[0], name=output),)
        return check_parity(trained.network, session, images, size, tolerance=tolerance, min_agreement=agreement)


def is_compiled(path: Path, target: Target) -> bool:
    """Say whether a file is a package that AOTInductor compiles for its target; every other one fits all targets."""
    return path.suffix.lower() == ".pt2" and target.runtime.startswith("aotinductor-")


def proof_target(path: Path, target: Target) -> Target:
    """Return where a file is compared with PyTorch."""
    return target if is_compiled(path, target) else PROOF[path.suffix.lower()]


def manifest_of(path: Path) -> Path:
    """Return where the manifest of a single file stands."""
    return path.with_name(f"{path.name}.manifest.json")


def check_free(path: Path) -> None:
    """Refuse to overwrite what `write_file` did not write.

    Raises:
        InvalidInput: something stands at `path` that no manifest beside it lists.
    """
    manifest = manifest_of(path)
    check_own(path, manifest, lambda: path.name in read_json(manifest, FORMAT_VERSION)["files"])


def _write_model(trained: Trained, path: Path, size: tuple[int, int], output: str, target: Target) -> None:
    from export.onnx.exporter import Output, export_onnx

    about = {
        "preprocessing": json.dumps(trained.preprocessing.to_json()), "labels": json.dumps(trained.labels.to_json()),
        "genotype": trained.genotype.to_json(), "size": format_size(size), "output": output,
    }  # fmt: skip
    if path.suffix.lower() == ".onnx":
        export_onnx(trained.network, size, path, output, about)
        return
    if is_compiled(path, target):
        from export.backends.aotinductor_session import compile_package

        network = Output(trained.network.folded(), output)
        compile_package(network, (torch.zeros(1, 3, *size),), path, target, ["image"], about, decompositions())
        return
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)  # torch 2.13 about itself
        program = torch.export.export(Output(trained.network.folded(), output).eval(), (torch.zeros(1, 3, *size),))
        # our operator would make the file unreadable without this package
        program = program.run_decompositions(decompositions())
    torch.export.save(program, buffer, extra_files=about)
    write_bytes(path, buffer.getvalue())
