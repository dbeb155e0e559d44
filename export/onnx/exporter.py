"""Export networks to single-file ONNX models of the standard domain; export many small modules in one go.

The TorchDynamo exporter costs 0.5-1 s per call whatever the module's size, so `export_modules` wraps a batch of modules
in one module, exports that once and cuts the graph apart (0.05-0.07 s per module in batches of 40).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from export.bundle.manifest import OUTPUTS
from export.errors import InvalidInput
from export.files import write_bytes
from export.onnx.functions import OnnxFunction, attach, nodes_of
from export.onnx.graph_split import Splitter, spec_of
from export.onnx.tracing import checked_bytes, evaluating, folded, on_cpu, trace
from export.runtime import TensorSpec


@dataclass(frozen=True)
class OnnxReport:
    """What was written."""

    path: Path
    size_bytes: int
    sha256: str
    opset: int
    input: TensorSpec
    output: TensorSpec
    parameters: int
    """Elements in the file's weights (after BN folding)."""
    operators: dict[str, int]
    """How often each ONNX operator occurs."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the path is reduced to its name."""
        return {
            "file": self.path.name,
            "size_bytes": self.size_bytes,
            "sha256": self.sha256,
            "opset": self.opset,
            "input": {"name": self.input.name, "shape": list(self.input.shape), "dtype": self.input.dtype},
            "output": {"name": self.output.name, "shape": list(self.output.shape), "dtype": self.output.dtype},
            "parameters": self.parameters,
            "operators": self.operators,
        }


class Output(nn.Module):
    """Give a network one of the outputs `native`, `logits`, `labels`, `panoptic`."""

    def __init__(self, module: nn.Module, output: str) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise InvalidInput(f"output {output!r} is unknown; write one of {', '.join(OUTPUTS)}")
        if output in ("native", "panoptic") and not hasattr(module, f"forward_{output}"):
            raise InvalidInput(f"{type(module).__name__} has no forward_{output}; take output='logits' or 'labels'")
        self.network, self.output = module, output

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map (1, 3, H, W) float32 to logits (1, C, h, w) float32, or to labels (1, H, W), uint8 up to 255 classes.

        `panoptic`: (1, C + 3, h, w): logits, one channel of instance centres, two of offsets to them.
        """
        if self.output in ("native", "panoptic"):
            return getattr(self.network, f"forward_{self.output}")(image)
        logits = self.network(image)
        if self.output == "logits":
            return logits
        return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 255 else torch.int32)


def export_onnx(
    module: nn.Module,
    size: tuple[int, int],
    path: Path | str,
    output: str = "native",
    metadata: Mapping[str, str] | None = None,
    opset: int = 18,
    functions: Sequence[OnnxFunction] = (),
) -> OnnxReport:
    """Write a network as one static-shape fp32 ONNX file: input `image` (1, 3, H, W), one output named like `output`.

    Args:
        module: maps (1, 3, H, W) to logits; for `native` it has `forward_native`. If it offers `folded()`, that copy
            (BN folded into convolutions) is exported. Its training flags are restored afterwards.
        size: (H, W).
        path: where to write; an existing file is replaced only when everything succeeded.
        output: `native` (logits at the head's stride), `logits` (at input size), `labels`, or `panoptic` (logits, centres and
            offsets at the head's stride, joined along the channels).
        metadata: written to the model's metadata.
        opset: ONNX operator set.
        functions: operators of other domains that the module writes as nodes; those that occur get their default bodies. Such
            a file is an intermediate for `export.onnx.functions.attach`; without any it is standard ONNX.

    Raises:
        InvalidInput: unknown output, a function for another opset, a module that cannot be exported, or a model beyond 2 GiB.
    """
    path = Path(path)
    wrong = [item for item in (metadata or {}).items() if not all(isinstance(part, str) for part in item)]
    if wrong:
        raise InvalidInput(f"ONNX metadata holds text only; got {wrong!r} (write json.dumps(value))")
    network = Output(on_cpu(folded(module)), output)
    model = trace(network, (torch.zeros(1, 3, *size),), ["image"], [output], opset)
    for key in sorted(metadata or {}):
        model.metadata_props.add(key=key, value=(metadata or {})[key])
    data = checked_bytes(_with_bodies(model, functions), type(module).__name__, functions)
    write_bytes(path, data)
    return OnnxReport(
        path=path,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        opset=opset,
        input=spec_of(model.graph.input[0]),
        output=spec_of(model.graph.output[0]),
        parameters=sum(_elements(tensor) for tensor in model.graph.initializer),
        operators=dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
    )


def export_modules(
    modules: Sequence[tuple[nn.Module, tuple[torch.Tensor, ...]]],
    folder: Path,
    names: Sequence[str],
    batch: int = 40,
    progress: Callable[[int, int], None] | None = None,
    opset: int = 18,
    functions: Sequence[OnnxFunction] = (),
) -> list[Path]:
    """Write each module with its example inputs as `folder/<name>.onnx`, inputs `x0, ...`, outputs `y0, ...`.

    A valid file that already stands under a name is kept: choose names that change with the content.

    Args:
        modules: pairs of module and positional inputs (static shapes are taken from them).
        folder: made if missing.
        names: one unique file stem per module.
        batch: modules per call of the exporter.
        progress: called with (files present, files wanted) after each batch.
        opset: ONNX operator set.
        functions: as `export_onnx` takes them.

    Returns:
        The files, in the order of `modules`.

    Raises:
        InvalidInput: names do not fit the modules, or a module cannot be exported (named).
    """
    if len(names) != len(modules) or len(set(names)) != len(names) or batch < 1:
        found = f"got {len(set(names))} different names and batch {batch}"
        raise InvalidInput(f"{len(modules)} modules need as many different names, and batch >= 1; {found}")
    paths = [folder / f"{name}.onnx" for name in names]
    missing = [index for index, path in enumerate(paths) if not _valid(path)]
    done = len(modules) - len(missing)
    for start in range(0, len(missing), batch):
        chosen = missing[start : start + batch]
        _export_batch([(names[i], paths[i], *modules[i]) for i in chosen], opset, functions)
        done += len(chosen)
        if progress is not None:
            progress(done, len(modules))
    return paths


class _Batch(nn.Module):
    def __init__(self, modules: Sequence[nn.Module], arity: Sequence[int]) -> None:
        super().__init__()
        self.modules_ = nn.ModuleList(modules)
        self.arity = tuple(arity)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: list[torch.Tensor] = []
        start = 0
        for module, count in zip(self.modules_, self.arity, strict=True):
            result = module(*inputs[start : start + count])
            results.extend(result if isinstance(result, (tuple, list)) else (result,))
            start += count
        return tuple(results)


Job = tuple[str, Path, nn.Module, tuple[torch.Tensor, ...]]


def _export_batch(jobs: Sequence[Job], opset: int, functions: Sequence[OnnxFunction]) -> None:
    """Export jobs together; if the exporter refuses, halve until the module at fault is alone and can be named."""
    modules = [on_cpu(folded(module)) for _, _, module, _ in jobs]
    # torch.export would make one graph input of two arguments that are the same tensor
    inputs = [[tensor.detach().cpu().clone() for tensor in example] for _, _, _, example in jobs]
    with evaluating(*modules), torch.no_grad():
        counts = []
        for module, example in zip(modules, inputs, strict=True):
            result = module(*example)
            counts.append(len(result) if isinstance(result, (tuple, list)) else 1)
    sources = [[f"i{j}_{k}" for k in range(len(example))] for j, example in enumerate(inputs)]
    targets = [[f"o{j}_{k}" for k in range(count)] for j, count in enumerate(counts)]
    try:
        whole = _Batch(modules, [len(example) for example in inputs])
        flat = tuple(tensor for example in inputs for tensor in example)
        model = trace(whole, flat, [*chain(*sources)], [*chain(*targets)], opset)
    except InvalidInput as error:
        if len(jobs) == 1:
            raise InvalidInput(f"module {jobs[0][0]}: {error}") from error
        _export_batch(jobs[: len(jobs) // 2], opset, functions)
        _export_batch(jobs[len(jobs) // 2 :], opset, functions)
        return
    splitter = Splitter(model)
    for (name, path, _, _), source, target in zip(jobs, sources, targets, strict=True):
        write_bytes(path, checked_bytes(_with_bodies(splitter.cut(source, target), functions), name, functions))


def _with_bodies(model: onnx.ModelProto, functions: Sequence[OnnxFunction]) -> onnx.ModelProto:
    """Give nodes of functions their default bodies."""
    for function in functions:
        if nodes_of(model, function):
            model = attach(model, function)
    return model


def _valid(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        onnx.checker.check_model(onnx.load(path))
    except (onnx.checker.ValidationError, ValueError, RuntimeError):
        return False
    except Exception as error:  # protobuf's DecodeError derives from Exception alone, and its home differs by release
        if type(error).__name__ != "DecodeError":
            raise
        return False
    return True


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for extent in tensor.dims:
        count *= extent
    return count
