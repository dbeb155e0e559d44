"""Functions that tests call in a process that has TensorRT's real bindings (`Bindings.call`); arguments and answers are JSON.

`python -m tests.export.trt.inside module:function ARGUMENTS.json-text ANSWER-FILE` calls one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def describe() -> dict[str, Any]:
    """Return the version, and whether the package for plugins is there."""
    import tensorrt as trt

    return {"version": trt.__version__, "plugins": importlib.util.find_spec("tensorrt.plugin") is not None}


def missing(names: Sequence[str]) -> list[str]:
    """Return those of some names (`BuilderFlag.TF32`, `plugin.cdiv`) that the module does not have."""
    import tensorrt as trt

    if importlib.util.find_spec("tensorrt.plugin") is not None:
        trt.plugin = importlib.import_module("tensorrt.plugin")
    return [name for name in names if not _has(trt, name)]


def spine() -> dict[str, Any]:
    """Return what `export.trt.versions` and `export.trt.log` make of the real module."""
    import tensorrt as trt

    from export.trt import log, versions

    versions.check_supported(trt)
    logger = log.logger_of(trt)
    for severity in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
        logger.log(getattr(trt.ILogger.Severity, severity), f"as {severity}")
    return {
        "version": versions.version_of(trt),
        "has_plugins": versions.has_plugins(trt),
        "network_flags": versions.network_flags(trt, plugins=False),
        "network_flags_with_plugins": versions.network_flags(trt, plugins=True) if versions.has_plugins(trt) else None,
        "logger": isinstance(logger, trt.ILogger),
        "messages": log.MESSAGES.take(),
    }


def callbacks() -> dict[str, dict[str, list[str]]]:
    """Return per class of TensorRT's that ours extend what it may call, and what ours define of it."""
    import tensorrt as trt

    from export.trt.layers import LayerTimes, profiler_of
    from export.trt.log import logger_of
    from export.trt.progress import Cancel, monitor_of

    found = {}
    for ours in (logger_of(trt), monitor_of(trt, None, Cancel()), profiler_of(trt, LayerTimes())):
        base = next(known for known in type(ours).__mro__ if known.__module__.startswith("tensorrt"))
        methods = [name for name, value in vars(base).items() if not (name.startswith("_") or inspect.isclass(value))]
        called = [name for name in methods if callable(getattr(base, name))]
        found[base.__name__] = {"called": sorted(called), "defined": sorted(set(called) & set(vars(type(ours))))}
    return found


def construct_a_builder() -> None:
    """Try to make what needs the real library."""
    import tensorrt as trt

    trt.Builder(trt.Logger())


def evaluate_launch(register: str, plugin: str, inputs: Sequence[tuple[Sequence[int], str]]) -> dict[str, Any]:
    """Register a plugin and drive it as a build would.

    Args:
        register: what registers it, as `package.module:function`. Its annotations must be real ones, not strings.
        plugin: its name, `namespace::name`.
        inputs: per input its shape, and its type as `trt.DataType` names it (`"HALF"`).

    Returns:
        `outputs`: [shape, type] per output. `attributes`: names of the plugin's attributes. `found_by_parser`: whether the ONNX
        parser finds it. `launches`: per combination of types and tactic `types` and `formats` (inputs, then outputs), `tactic`,
        `kernel` (name), `code` (PTX as text, or the length in bytes of a cubin), `grid` and `block` (x, y, z), `shared_bytes`,
        and `scalars` (the int32 between input and output pointers).
    """
    registry = _patch()
    import tensorrt as trt

    plugins = importlib.import_module("tensorrt_bindings.plugin._lib")
    function = _resolve(register)
    if callable(function):
        function()
    namespace, _, name = plugin.partition("::")
    found = (name, namespace) in registry.creators
    creator = registry.creators[name, namespace] if found else plugins._TemplatePluginCreator(name, namespace, {})
    # Without attributes this is what the parser passes for a node whose attribute `aot` is 1.
    request = (trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT)
    made = creator.create_plugin(name, namespace, *request)
    types, shapes = [getattr(trt.DataType, kind) for _, kind in inputs], [list(shape) for shape, _ in inputs]
    output_types = made.get_output_data_types(types, [len(shape) for shape in shapes])
    expressions = [[_Number(size) for size in shape] for shape in shapes]
    output_shapes = [[size.value for size in shape] for shape in made.get_output_shapes(expressions, [], _Numbers())]
    tensors = [_tensor(trt, shape, kind) for shape, kind in zip([*shapes, *output_shapes], [*types, *output_types], strict=True)]
    return {
        "outputs": [[shape, kind.name] for shape, kind in zip(output_shapes, output_types, strict=True)],
        "attributes": list(plugins.QDP_REGISTRY[plugin].input_attrs),
        "found_by_parser": found,
        "launches": _launches(made, tensors, expressions),
    }


class _Number:
    """Stand in for `trt.IDimensionExpr`: a size that is known."""

    def __init__(self, value: int) -> None:
        self.value = int(value)

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value

    def is_size_tensor(self) -> bool:
        return False


class _Numbers:
    """Stand in for `trt.IExprBuilder`: work out each operation at once, with C++'s int64 division for sizes."""

    def constant(self, value: int) -> _Number:
        return _Number(value)

    def operation(self, operation: Any, first: _Number, second: _Number) -> _Number:
        a, b = first.value, second.value
        results = {"SUM": lambda: a + b, "PROD": lambda: a * b, "FLOOR_DIV": lambda: a // b, "CEIL_DIV": lambda: -(-a // b)}
        return _Number(results[operation.name]())


class _SymbolicArgument:
    """Stand in for `trt.ISymExpr`; NVIDIA's subclass sets `type`, `dtype` and `expr`."""


class _Registry:
    """Stand in for the plugin registry, which the real library holds."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators[creator.name, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators.get((name, namespace))


class _Arguments(dict[int, Any]):
    """Stand in for `trt.ISymExprs`: a number of arguments, then each by its index."""

    nbSymExprs = 0


def _patch() -> _Registry:
    """Put what needs no library in the place of what does, before `tensorrt.plugin` makes subclasses of it."""
    import tensorrt as trt

    if "tensorrt.plugin" in sys.modules:
        raise RuntimeError("tensorrt.plugin was imported before its base classes were replaced; register plugins later")
    registry = _Registry()
    trt.IDimensionExpr, trt.ISymExpr = _Number, _SymbolicArgument
    trt.DimsExprs = lambda rank: [None] * rank
    trt.get_plugin_registry = lambda: registry
    return registry


def _tensor(trt: Any, shape: Sequence[int], kind: Any) -> Any:
    """Return a real `trt.DynamicPluginTensorDesc` of a static shape."""
    tensor, inner = trt.DynamicPluginTensorDesc(), trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format, inner.scale = trt.Dims(shape), kind, trt.TensorFormat.LINEAR, 1.0
    tensor.desc = inner
    tensor.min = tensor.opt = tensor.max = trt.Dims(shape)
    return tensor


def _launches(plugin: Any, tensors: list[Any], expressions: list[list[_Number]]) -> list[dict[str, Any]]:
    """Go through all combinations of types and all tactics, as the builder's auto-tuner does."""
    count, found = len(expressions), []
    flat = plugin.get_supported_format_combinations(tensors, count)
    for start in range(0, len(flat), len(tensors)):
        combination = flat[start : start + len(tensors)]
        for tensor, supported in zip(tensors, combination, strict=True):
            inner = tensor.desc
            inner.type, inner.format = supported.type, supported.format
            tensor.desc = inner
        plugin.configure_plugin(tensors[:count], tensors[count:])
        for tactic in plugin.get_valid_tactics() or [0]:
            plugin.set_tactic(tactic)
            launch, scalars = SimpleNamespace(), _Arguments()
            plugin.get_launch_params(expressions, tensors, count, launch, scalars, _Numbers())
            kernel, code = plugin.get_kernel([t.desc for t in tensors[:count]], [t.desc for t in tensors[count:]])
            if sorted(scalars) != list(range(scalars.nbSymExprs)):
                raise AssertionError(f"{scalars.nbSymExprs} scalars were announced, and those set are {sorted(scalars)}")
            found.append(
                {
                    "types": [supported.type.name for supported in combination],
                    "formats": [supported.format.name for supported in combination],
                    "tactic": tactic,
                    "kernel": kernel if isinstance(kernel, str) else kernel.decode(),
                    "code": _text(code),
                    "grid": [getattr(launch, f"grid_{axis}").expr.value for axis in "xyz"],
                    "block": [getattr(launch, f"block_{axis}").expr.value for axis in "xyz"],
                    "shared_bytes": launch.shared_mem.expr.value,
                    "scalars": [scalars[index].expr.value for index in range(len(scalars))],
                }
            )
    return found


def _text(code: bytes) -> str | int:
    try:
        return code.decode("ascii")
    except UnicodeDecodeError:
        return len(code)


def _has(start: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(start, part):
            return False
        start = getattr(start, part)
    return True


def _resolve(name: str) -> Any:
    """Import `package.module`, and return it or, for `package.module:function`, what it holds."""
    module, _, function = name.partition(":")
    found = importlib.import_module(module)
    return getattr(found, function) if function else found


if __name__ == "__main__":
    answer = _resolve(sys.argv[1])(*json.loads(sys.argv[2]))
    Path(sys.argv[3]).write_text(json.dumps(answer))
