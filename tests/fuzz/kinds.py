"""List the kinds of files that commands read: a sample of each, what reads it, and what must hold of what was read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.oracles import Wrong, check_evaluation
from tests.fuzz.samples import CLASSES, DATA, SMALL, onnx_metadata, with_onnx_metadata

Reader = Callable[[Path], Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file."""

    name: str
    file: str
    """The sample that is mutated, below the folder of samples."""
    form: str
    """How it is mutated: "json", "jsonl", "toml" or "bytes"."""
    read: Reader
    """Given a copy of the samples: the product's reading of the file, as data."""
    command: tuple[object, ...] = ()
    """Name and arguments of a command that reads it; `{}` is the copy of the samples. Empty: none does without special hardware."""
    exact: bool = False
    """The content is protected by a hash: what is accepted is what was written."""
    consistent: Callable[[Any], None] = lambda value: None
    """Raises `Wrong` where an accepted value contradicts itself."""
    part: Callable[[bytes], bytes] | None = None
    """Takes what is mutated out of the file ..."""
    whole: Callable[[bytes, bytes], bytes] | None = None
    """... and puts it back."""
    after: Callable[[Path], None] | None = None
    """Done once the file is written: a hash that fits the lie, for instance."""


def kinds() -> tuple[Kind, ...]:
    """Return all kinds."""
    return (*_run_kinds(), *_bundle_kinds(), *_file_kinds(), *_data_kinds())


def _run_kinds() -> tuple[Kind, ...]:
    search = ("search", "--run", "{}/run", "--evaluations", 2, "--images", 2, "--measure", 0, "--finalists", 0)
    supernet = ("train", "supernet", "--run", "{}/run", "--data", DATA, "--space", "tiny", *SMALL)
    network = ("train", "network", "--run", "{}/run", "--data", DATA, *SMALL)
    profile = ("profile", "--run", "{}/run", "--space", "tiny", "--size", "64x64", "--classes", CLASSES, "--networks", 0)
    stopped = ("--config", "{}/files/train.toml", "--run", "{}/half", "--data", DATA, *SMALL)
    told = ("train", "network", "--network", "{}/run/genotype.json", "--teacher", "{}/run", *stopped)
    bench = ("bench", "--run", "{}/run", "--seconds", 0.02, "--size", "64x64")
    export = ("export", "{}/x.onnx", "--network", "{}/run", "--size", "64x64")
    return (
        Kind(name="record of train supernet", file="run/train-supernet.json", form="json", read=_record, command=search),
        Kind(name="record of train network", file="run/train-network.json", form="json", read=_record, command=network),
        Kind(name="record of a search", file="run/search.json", form="json", read=_collected, command=search),
        Kind(name="latency table", file="run/latency.json", form="json", read=_table, command=search),
        Kind(name="latency journal", file="files/table.json.journal.jsonl", form="jsonl", read=_journal),
        Kind(name="table as profile reads it", file="run/latency.json", form="json", read=_table,
             command=(*profile[:2], "{}/run", *profile[3:], "--merge", "{}/run/latency.json", "--shard", "1/9999")),
        Kind(name="history", file="run/history.jsonl", form="jsonl", read=_history, command=search, consistent=_costs),
        Kind(name="front", file="run/pareto.json", form="json", read=_front, command=network, consistent=_front_holds),
        Kind(name="supernet weights", file="run/supernet.safetensors", form="bytes", read=_supernet, command=search, exact=True),
        Kind(name="network weights", file="run/network.safetensors", form="bytes", read=_network, command=export, exact=True),
        Kind(name="genotype of a run", file="run/genotype.json", form="json", read=_network, command=bench),
        Kind(name="classes of a run", file="run/labels.json", form="json", read=_network, command=bench),
        Kind(name="scores", file="run/scores.json", form="json", read=_scores, command=bench, consistent=_scores_hold),
        Kind(name="FPS report", file="run/fps.json", form="json", read=_collected, command=bench, consistent=_times_hold),
        Kind(name="FPS report to be replaced", file="run/fps.json", form="json", read=_replaced,
             command=("bench", "{}/run/model.onnx", "--seconds", 0.02, "--out", "{}/run/fps.json")),
        Kind(name="supernet checkpoint", file="half/supernet.checkpoint.pt", form="bytes", read=_checkpoint, exact=True,
             command=("train", "supernet", "--space", "tiny", *stopped)),
        Kind(name="network checkpoint", file="half/network.checkpoint.pt", form="bytes", read=_network_checkpoint, command=told,
             exact=True),
        Kind(name="soft labels", file="half/soft_labels/000001.safetensors", form="bytes", read=_soft, command=told),
        Kind(name="record of soft labels", file="half/soft_labels/teacher.json", form="json", read=_soft_record, command=told),
        Kind(name="record of a stopped training", file="half/train-supernet.json", form="json", read=_half_record,
             command=("train", "supernet", "--space", "tiny", *stopped)),
        Kind(name="supernet to start from", file="run/train-supernet.json", form="json", read=_record,
             command=(*supernet[:3], "{}/other", *supernet[4:], "--init", "{}/run")),
    )  # fmt: skip


def _bundle_kinds() -> tuple[Kind, ...]:
    export = ("export", "{}/x.onnx", "--network", "{}/run/bundle")
    bench = ("bench", "{}/run/bundle", "--seconds", 0.02, "--out", "{}/out.json")
    signed: dict[str, Any] = {"read": _bundle, "command": bench, "after": _sign}
    plain: dict[str, Any] = {"read": _bundle, "command": export, "exact": True}
    return (
        Kind(name="bundle manifest", file="run/bundle/manifest.json", form="json", read=_bundle, command=bench),
        Kind(name="bundle model", file="run/bundle/model.onnx", form="bytes", **plain),
        Kind(name="bundle weights", file="run/bundle/weights.safetensors", form="bytes", **plain),
        Kind(name="bundle classes, hash right", file="run/bundle/labels.json", form="json", **signed),
        Kind(name="bundle parity, hash right", file="run/bundle/parity.json", form="json", **signed),
        Kind(name="bundle genotype, hash right", file="run/bundle/genotype.json", form="json", **signed),
        Kind(name="bundle metadata, hash right", file="run/bundle/model.onnx", form="json", part=onnx_metadata,
             whole=with_onnx_metadata, **signed),
        Kind(name="PyTorch program", file="run/model.pt2", form="bytes", read=_program,
             command=("bench", "{}/run/model.pt2", "--trust", "--seconds", 0.02, "--out", "{}/out.json")),
        Kind(name="manifest beside a file", file="run/model.onnx.manifest.json", form="json", read=_free,
             command=("export", "{}/run/model.onnx", "--network", "{}/files/none.json")),
    )  # fmt: skip


def _file_kinds() -> tuple[Kind, ...]:
    onnx = ("bench", "{}/files/foreign.onnx", "--size", "32x32", "--seconds", 0.02, "--mode", "labels", "--out", "{}/out.json")
    external = (*onnx[:1], "{}/files/external.onnx", *onnx[2:])
    start = ("train", "supernet", "--run", "{}/new", "--data", DATA, "--space", "tiny", *SMALL, "--init")
    kit = ("profile", "--ingest", "{}/kit", "--run", "{}/new")
    toml = ("train", "supernet", "--run", "{}/new", "--data", "{}/none", "--config", "{}/files/train.toml")
    return (
        Kind(name="genotype", file="files/genotype.json", form="json", read=_genotype,
             command=("export", "{}/x.onnx", "--network", "{}/files/genotype.json", "--random-weights", "--size", "64x64")),
        Kind(name="released genotype", file="files/released.json", form="json", read=_released,
             command=("train", "network", "--network", "published:{}/files/released.json", "--data", "{}/none", "--run", "{}/n")),
        Kind(name="released checkpoint", file="files/weights.pth", form="bytes", read=_checkpoint_released,
             command=("export", "{}/x.onnx", "--network", "published:S", "--size", "64x64",
                      "--checkpoint", "{}/files/weights.pth")),
        Kind(name="trained weights, torch", file="files/weights.pth", form="bytes", read=_pth,
             command=(*start, "{}/files/weights.pth")),
        Kind(name="trained weights, safetensors", file="files/weights.safetensors", form="bytes", read=_safetensors,
             command=(*start, "{}/files/weights.safetensors")),
        Kind(name="rounds of finalists", file="files/rounds.json", form="json", read=_rounds),
        Kind(name="training settings", file="files/train.toml", form="toml", read=_training_settings, command=toml),
        Kind(name="measuring settings", file="files/profile.toml", form="toml", read=_measuring_settings,
             command=("profile", "--run", "{}/new", "--space", "{}/none.py", "--config", "{}/files/profile.toml")),
        Kind(name="foreign ONNX file", file="files/foreign.onnx", form="bytes", read=_foreign("foreign.onnx"), command=onnx),
        Kind(name="foreign ONNX metadata", file="files/foreign.onnx", form="json", read=_foreign("foreign.onnx"), command=onnx,
             part=onnx_metadata, whole=with_onnx_metadata),
        Kind(name="ONNX file with external data", file="files/external.onnx", form="bytes", read=_foreign("external.onnx"),
             command=external),
        Kind(name="external data", file="files/external.bin", form="bytes", read=_foreign("external.onnx"), command=external),
        Kind(name="ONNX teacher's metadata", file="files/foreign.onnx", form="json", read=_teacher, part=onnx_metadata,
             whole=with_onnx_metadata),
        Kind(name="engine manifest", file="files/model.engine.json", form="json", read=_engine,
             command=("bench", "{}/files/model.engine", "--out", "{}/out.json")),
        Kind(name="kit", file="kit/kit.json", form="json", read=_kit, command=kit),
        Kind(name="kit status", file="kit/results/ops-0000.status", form="bytes", read=_kit, command=kit),
        Kind(name="kit times, packed", file="kit/results/ops-0000.times.json.gz", form="bytes", read=_kit, command=kit),
        Kind(name="kit times", file="kit/results/ops-0000.times.json.gz", form="json", read=_kit, command=kit, **_gzip()),
        Kind(name="kit profile", file="kit/results/ops-0000.profile.json.gz", form="json", read=_kit, command=kit, **_gzip()),
        Kind(name="kit layers", file="kit/results/ops-0000.layers.json.gz", form="json", read=_kit, command=kit, **_gzip()),
        Kind(name="kit device", file="kit/results/device.txt", form="bytes", read=_kit, command=kit),
    )  # fmt: skip


def _data_kinds() -> tuple[Kind, ...]:
    bench = ("bench", "{}/run/bundle", "--seconds", 0.02, "--out", "{}/out.json", "--mode", "end-to-end", "--data")
    images = "{}/data/images/train"
    return (
        Kind(name="PNG image", file="data/images/train/clip0_0.png", form="bytes", read=_data, command=(*bench, images)),
        Kind(name="JPEG image", file="data/images/train/clip1_1.jpg", form="bytes", read=_data, command=(*bench, images)),
        Kind(name="BMP image", file="data/images/train/clip2_2.bmp", form="bytes", read=_data, command=(*bench, images)),
        Kind(name="TIFF image", file="data/images/train/clip3_3.tif", form="bytes", read=_data, command=(*bench, images)),
        Kind(name="WebP image", file="data/images/train/clip4_4.webp", form="bytes", read=_data, command=(*bench, images)),
        Kind(name="label", file="data/labels/val/clip0_0.png", form="bytes", read=_data, command=(*bench, "{}/data")),
        Kind(name="class list", file="data/classes.txt", form="bytes", read=_data, command=(*bench, "{}/data")),
        Kind(name="class list, JSON", file="files/classes.json", form="json", read=_classes_json),
    )


def _gzip() -> dict[str, Any]:
    import gzip

    return {"part": gzip.decompress, "whole": lambda _, part: gzip.compress(part, 1)}


# What reads each kind. Imports stand inside, so that listing the kinds is quick.


def _record(root: Path) -> Any:
    from hyctas.artifacts.runs import recorded_preprocessing
    from hyctas.report.collect import collect

    run = root / "run"
    return [recorded_preprocessing(run / f"train-{name}.json") for name in ("supernet", "network")], collect(run).records


def _half_record(root: Path) -> Any:
    from hyctas.artifacts.runs import recorded_preprocessing
    from hyctas.report.collect import collect

    return recorded_preprocessing(root / "half" / "train-supernet.json"), collect(root / "half").records


def _collected(root: Path) -> Any:
    from hyctas.report.collect import collect

    return collect(root / "run")


def _table(root: Path) -> Any:
    from latency.table import LatencyTable

    return LatencyTable.load(root / "run" / "latency.json")


def _journal(root: Path) -> Any:
    from latency.journal import read_journal

    return read_journal(root / "files" / "table.json.journal.jsonl", lambda text: None)


def _rounds(root: Path) -> Any:
    from hyctas.search.finalists import read_rounds

    return read_rounds(root / "files" / "rounds.json", [letter * 12 for letter in "abc"])


def _history(root: Path) -> Any:
    from hyctas.search.history import History

    path = root / "run" / "history.jsonl"
    header = json.loads((root.parent / "samples" / "run" / "history.jsonl").read_text().splitlines()[0])
    history = History(path, {name: value for name, value in header.items() if name != "format_version"}, lambda text: None)
    return history.evaluations, _collected(root).points


def _costs(value: Any) -> None:
    for evaluation in value[0]:
        check_evaluation(evaluation, CLASSES)
    seen: dict[str, float] = {}
    for evaluation in value[0]:
        if seen.setdefault(evaluation.id, evaluation.miou) != evaluation.miou:
            raise Wrong(f"network {evaluation.id} has two scores")


def _front(root: Path) -> Any:
    from hyctas.artifacts.choice import chosen_genotype
    from hyctas.commands.front_table import show_front

    found = _collected(root)
    return found.outcome, found.points, chosen_genotype(root / "run"), show_front(root / "run")


def _front_holds(value: Any) -> None:
    """Compare the front with the history that it was drawn from."""
    outcome, points, chosen, _ = value
    recorded = {(point.kind, point.id): point for point in points}
    for member in outcome.front:
        if recorded.get((member.evaluation.kind, member.id)) != member.evaluation:
            raise Wrong(f"front: network {member.id} is not what history.jsonl says: mIoU {member.evaluation.miou}")
    if outcome.choice.evaluation.genotype != chosen:
        raise Wrong("the report and the training take different networks of the front")


def _supernet(root: Path) -> Any:
    from hyctas.artifacts.inherit import SupernetRecord

    return _digest(SupernetRecord.read(root / "run").load().state_dict())


def _network(root: Path) -> Any:
    from hyctas.artifacts.bundling import load_trained

    trained = load_trained(root / "run")
    weights = _digest(trained.network.state_dict())
    return weights, trained.genotype, trained.labels, trained.size, trained.preprocessing, trained.facts


def _digest(state: Any) -> str:
    from hyctas.pretrained.state_file import tensors_sha256

    return tensors_sha256(state)


def _scores(root: Path) -> Any:
    return _collected(root).scores, _network(root)[-1]


def _scores_hold(value: Any) -> None:
    scores, facts = value
    for split, score in scores.items():
        counted = [iou for iou, present in zip(score.iou, score.present, strict=True) if present and iou is not None]
        if counted and abs(sum(counted) / len(counted) - score.miou) > 1e-6:
            raise Wrong(f"{split}: mIoU {score.miou}, but the mean over its classes is {sum(counted) / len(counted)}")
    for split, miou in facts.get("miou", {}).items():
        if not 0 <= miou <= 1:
            raise Wrong(f"{split}: mIoU {miou} would be noted in a manifest")


def _times_hold(value: Any) -> None:
    for model in value.bench.models if value.bench else ():
        if not model.min_ms <= model.median_ms <= model.p90_ms <= model.p95_ms <= model.p99_ms:
            raise Wrong(f"{model.name}: times are not in order")
        if abs(model.fps * model.median_ms / 1000 - 1) > 0.01:
            raise Wrong(f"{model.name}: {model.fps} FPS at a median of {model.median_ms} ms")


def _checkpoint(root: Path) -> Any:
    from hyctas.nn.supernet import Supernet
    from hyctas.space import tiny

    return _resumed(_kept("supernet", lambda: Supernet(tiny(), CLASSES)), root / "half" / "supernet.checkpoint.pt", {"ratios": []})


def _network_checkpoint(root: Path) -> Any:
    from hyctas.artifacts.choice import read_genotype
    from hyctas.network import build

    path = root.parent / "samples" / "run" / "genotype.json"
    network = _kept("network", lambda: build(read_genotype(path), CLASSES))
    return _resumed(network, root / "half" / "network.checkpoint.pt", {})


def _resumed(model: Any, path: Path, extra: dict[str, Any]) -> Any:
    from export.errors import InvalidInput
    from hyctas.training.config import Recipe
    from hyctas.training.loop import Trainer

    if not path.exists():
        raise InvalidInput("there is none: the training begins anew")
    trainer = Trainer(model, Recipe(steps=1), path, extra)
    if not (isinstance(trainer.step, int) and 0 <= trainer.step < 2**63 and isinstance(trainer.spent_s, (int, float))):
        raise Wrong(f"a training would continue at step {trainer.step!r} after {trainer.spent_s!r} s")
    return trainer.step, float(trainer.spent_s), trainer.share, _digest(model.state_dict())


_models: dict[str, Any] = {}


def _kept(name: str, make: Callable[[], Any]) -> Any:
    if name not in _models:
        _models[name] = make()
    return _models[name]


def _soft(root: Path) -> Any:
    from hyctas.training.soft_labels import SoftLabels, _intact, frame_file

    folder = root / "half" / "soft_labels"
    if not _intact(frame_file(folder, 1)):
        return "labelled anew"
    from hyctas.data import View

    view = View(crop=(32, 32), rows=(0, 32), columns=(0, 32), into_rows=slice(0, 32), into_columns=slice(0, 32), mirror=False)
    found = SoftLabels(folder, 2.0).cut(1, view)
    if not (abs(found.sum(0) - 1) < 0.1).all():
        raise Wrong("soft labels whose probabilities do not sum to 1")
    return found


def _soft_record(root: Path) -> Any:
    from hyctas.training.soft_labels import _claim

    sample = json.loads((root.parent / "samples" / "half" / "soft_labels" / "teacher.json").read_text())
    return _claim(root / "half" / "soft_labels", {name: sample[name] for name in ("teachers", "temperature", "data")})


def _bundle(root: Path) -> Any:
    from export.bundle.bundle import read_bundle
    from hyctas.artifacts.bundling import load_trained

    bundle, trained = read_bundle(root / "run" / "bundle"), load_trained(root / "run" / "bundle")
    return bundle, trained.genotype, trained.labels, trained.size, trained.preprocessing, _digest(trained.network.state_dict())


def _sign(path: Path) -> None:
    """Note the hash of what now stands in a bundle in its manifest, as a liar would."""
    if not path.is_file():
        return
    place = path.parent / "manifest.json"
    manifest, data = json.loads(place.read_text()), path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    place.write_text(json.dumps(manifest))


def _free(root: Path) -> Any:
    from hyctas.artifacts.bundling import check_free

    return check_free(root / "run" / "model.onnx")


def _genotype(root: Path) -> Any:
    from hyctas.artifacts.choice import read_genotype
    from hyctas.cost.memory import live_mib
    from hyctas.plan import lower

    genotype = read_genotype(root / "files" / "genotype.json")
    plan = lower(genotype, (64, 64), CLASSES)
    return genotype, plan.macs, plan.parameters, live_mib(plan)


def _released(root: Path) -> Any:
    from hyctas.plan import lower
    from hyctas.published.spec import read_source

    genotype = read_source(f"published:{root}/files/released.json")
    return genotype, lower(genotype, (64, 64), 19).parameters


def _checkpoint_released(root: Path) -> Any:
    from hyctas.published import genotype, load_checkpoint
    from hyctas.published.checkpoint import read_checkpoint

    state = read_checkpoint(root / "files" / "weights.pth")
    return load_checkpoint(genotype("S"), state, auxiliary=any("_head_aux" in name for name in state))


def _pth(root: Path) -> Any:
    return _source(root / "files" / "weights.pth")


def _safetensors(root: Path) -> Any:
    return _source(root / "files" / "weights.safetensors")


def _source(path: Path) -> Any:
    from hyctas.pretrained.sources import read_source
    from hyctas.pretrained.state_file import read_state

    state = read_state(path)
    return read_source(str(path)), sorted(state)


def _training_settings(root: Path) -> Any:
    from hyctas.cli.train import TrainSupernetJob

    return _parsed(TrainSupernetJob, root / "files" / "train.toml", lambda job: job.recipe())


def _measuring_settings(root: Path) -> Any:
    from hyctas.cli.profile import ProfileJob

    return _parsed(ProfileJob, root / "files" / "profile.toml", lambda job: job.protocol)


def _parsed(kind: Any, path: Path, settings: Callable[[Any], Any]) -> Any:
    """Parse a TOML file as a command does; its exit code stands for the error that it printed."""
    from export.errors import InvalidInput
    from hyctas.cli.entry import command

    found: list[Any] = []
    try:
        command(lambda job: found.extend((job, settings(job))), kind, "", ["--config", str(path)])
    except SystemExit as end:
        if end.code != 2:
            raise Wrong(f"exit code {end.code}") from None
        raise InvalidInput("exit code 2") from None
    return found


def _foreign(name: str) -> Reader:
    def read(root: Path) -> Any:
        from export.bench_models import BenchModel, open_models
        from export.runtimes import open_runtime
        from export.target import Target

        runtime = open_runtime(Target.parse("onnxruntime-cpu:fp32"), 1)
        with open_models([BenchModel("m", path=root / "files" / name, size=(32, 32))], runtime, root)[0] as opened:
            return opened.preprocessing, opened.colours

    return read


def _program(root: Path) -> Any:
    from export.runtimes import open_runtime
    from export.target import Target

    with open_runtime(Target.parse("torch-cpu:fp32"), 1).load_file(root / "run" / "model.pt2") as session:
        return session.inputs, session.outputs, session.metadata


def _replaced(root: Path) -> Any:
    from hyctas.commands.timing_report import check_out

    check_out(root / "run" / "fps.json")


def _teacher(root: Path) -> Any:
    import numpy as np

    from hyctas.data import Labels
    from hyctas.training.teacher import find_teachers, open_teachers

    labels = Labels(("a", "b", "c", "d"), ((0, 0, 0),) * 4)
    with open_teachers(find_teachers([root / "files" / "foreign.onnx"]), labels) as teacher:
        soft = teacher.soft_map(np.zeros((32, 32, 3), np.uint8), 2.0)
    if not np.isfinite(soft.probabilities).all():
        raise Wrong("soft labels that are not finite")
    return soft.probabilities.shape


def _engine(root: Path) -> Any:
    from export.trt.engine_file import read_manifest

    return read_manifest(root / "files" / "model.engine")


def _kit(root: Path) -> Any:
    from latency.kit.ingest import ingest

    found = ingest(root / "kit")
    return found.table.rows, found.table.identity, found.networks, found.lost


def _data(root: Path) -> Any:
    from hyctas.data import open_source, verify

    source = open_source(str(root / "data"))
    verify(source, ("train", "val"), lambda done, total: None)
    loaded = [source.load(split, sample) for split in ("train", "val") for sample in source.samples(split)]
    return source.labels, [(image.shape, int(label[label != 255].max(initial=0))) for image, label in loaded]


def _classes_json(root: Path) -> Any:
    from hyctas.data.classes_file import read_classes

    return read_classes(root / "files")
