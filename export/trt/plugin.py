"""Register attention kernels with TensorRT as ahead-of-time plugins, from 10.16 on, and put them into ONNX graphs.

One plugin per family of kernels (`PluginKernel.name`), in the namespace `hyctas`, without attributes: a plugin that has any cannot
be created by some versions. Everything is read from the shapes; another scale than 1 is multiplied into q by a node before. The
engine holds the compiled kernel and needs neither Python nor this package when it runs.
"""

# no `from __future__ import annotations`: NVIDIA's validators read the annotations below, and refuse strings

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from export.errors import InvalidInput, Unavailable
from export.plugin_kernel import AXES, PTX_OF_CUDA, CeilDiv, PluginKernel, newest_ptx
from export.trt.cuda.guard import Gpu
from export.trt.log import MESSAGES
from export.trt.versions import PLUGINS_FROM, check_arrays, has_plugins, number_of, version_of

if TYPE_CHECKING:
    import onnx

    from export.onnx.functions import OnnxFunction

NAMESPACE, VERSION = "hyctas", "1"
TYPES = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}
"""As `AutoTuneCombination` writes them."""
_NUMPY = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32"}
"""Our names by those of `tensorrt.DataType`."""
PLAIN_SHARED_BYTES = 48 << 10
"""Shared memory that a block may have without the launcher asking the driver for more (CUDA C++ Programming Guide): whether
TensorRT asks where a plugin needs it is not documented."""
Function = TypeVar("Function", bound=Callable[..., Any])


class Plugins:
    """The kernels of this process's plugins.

    TensorRT takes a plugin's functions once per process and name. So they look kernels up here while an engine is built, and
    kernels may be added to a plugin, or replaced, at any time before.
    """

    def __init__(self) -> None:
        self._kernels: dict[str, dict[tuple[str, int, int], PluginKernel]] = {}

    def register(self, kernels: Sequence[PluginKernel], trt: Any) -> None:
        """Make kernels, of any families, known to TensorRT's plugin registry; those that are known already are no error.

        Raises:
            Unavailable: a TensorRT before 10.16, or without its package for plugins.
            InvalidInput: the kernels of one plugin are for different channels.
        """
        if why := version_refusal(trt):
            raise Unavailable("attention plugins", why, "pip install 'tensorrt>=10.16,<12', or build without plugins")
        check_arrays(trt)
        for kernel in kernels:
            family = self._kernels.get(kernel.name, {})
            channels = {(known.qk_channels, known.value_channels) for known in (*family.values(), kernel)}
            if len(channels) > 1:
                raise InvalidInput(f"plugin {kernel.name} cannot be for several pairs of channels: {sorted(channels)}")
            if kernel.name not in self._kernels:
                _declare(f"{NAMESPACE}::{kernel.name}", kernel.name, self)
                self._kernels[kernel.name] = family
            family[kernel.dtype, kernel.query_multiple, kernel.key_multiple] = kernel

    def dtypes(self, name: str) -> list[str]:
        """Return the dtypes that a plugin has kernels for."""
        return sorted({kernel.dtype for kernel in self._kernels[name].values()})

    def kernel(self, name: str, dtype: str, q: Sequence[int], k: Sequence[int]) -> PluginKernel:
        """Return the kernel of a plugin for q (B, h, d, N) and k (B, h, d, M): of those that can, that for most.

        `InvalidInput` where there is none.
        """
        found = [kernel for kernel in self._kernels[name].values() if kernel.dtype == dtype]
        reasons = {kernel: kernel.refusal(q[0], q[1], q[3], k[3]) for kernel in found if kernel.qk_channels == q[2]}
        fitting = [kernel for kernel, why in reasons.items() if not why]
        if not fitting:
            why = "; ".join(reasons.values()) or f"none is for {dtype} and {q[2]} channels"
            raise InvalidInput(f"plugin {name} has no kernel for q {tuple(q)} and k {tuple(k)}: {why}")
        return max(fitting, key=lambda kernel: (kernel.query_multiple, kernel.key_multiple))


PLUGINS = Plugins()
"""This process's; TensorRT's registry is one per process, too."""


def version_refusal(trt: Any) -> str:
    """Say why this TensorRT takes no plugins of ours; empty where it does."""
    if has_plugins(trt):
        return ""
    return f"they need TensorRT {'.'.join(map(str, PLUGINS_FROM))}, and here is {'.'.join(map(str, version_of(trt)))}"


def refusal(kernel: PluginKernel, trt: Any, gpu: Gpu, shapes: Sequence[Sequence[int]]) -> str:
    """Say why a kernel cannot be built into an engine for this GPU and tensors q, k, v; empty where nothing is known against it.

    What cannot be told beforehand is left to the build: whether a driver newer than `PTX_OF_CUDA` reads still newer PTX.
    """
    q, k, v = shapes
    if why := version_refusal(trt):
        return why
    if (here := number_of(gpu.capability)) != kernel.architecture:
        return f"the kernel is compiled for sm_{kernel.architecture}, and this GPU is sm_{here}"
    if gpu.driver_cuda <= max(PTX_OF_CUDA) and kernel.ptx_version > newest_ptx(gpu.driver_cuda):
        driver, ptx = (".".join(map(str, version)) for version in (gpu.driver_cuda, kernel.ptx_version))
        return f"the kernel is PTX {ptx}, newer than what this driver (CUDA {driver}) reads; update the driver"
    if (q[2], v[2]) != (kernel.qk_channels, kernel.value_channels):
        return f"the kernel is for {kernel.qk_channels} and {kernel.value_channels} channels, not {q[2]} and {v[2]}"
    return kernel.refusal(q[0], q[1], q[3], k[3])


def with_plugins(model: "onnx.ModelProto", function: "OnnxFunction", kernels: Mapping[str, PluginKernel]) -> "onnx.ModelProto":
    """Return a copy of a model in which nodes of a function, by name, are plugin nodes; all others stay as they are.

    The function has inputs q, k, v and one output; its attribute `scale` is multiplied into q where it is not 1. `InvalidInput`
    where no node has such a name, or its dtype or channels are not the kernel's.
    """
    from onnx import ModelProto, NodeProto, TensorProto, helper

    from export.onnx.functions import nodes_of

    nodes = {node.name: node for node in nodes_of(model, function)}
    if unknown := sorted(set(kernels) - set(nodes)):
        raise InvalidInput(f"the model has no {function.label} nodes {unknown}; it has {sorted(nodes)}")
    result = ModelProto.FromString(model.SerializeToString())
    typed = {info.name for info in (*result.graph.value_info, *result.graph.output)}
    made: list[NodeProto] = []
    for node in map(NodeProto.FromString, [node.SerializeToString() for node in result.graph.node]):
        made.append(node)
        if not function.owns(node.domain, node.op_type) or node.name not in kernels:
            continue
        kernel, found = kernels[node.name], nodes[node.name]
        q, _, v = found.inputs
        if (q.dtype, q.shape[2], v.shape[2]) != (kernel.dtype, kernel.qk_channels, kernel.value_channels):
            wanted = f"{kernel.dtype}, {kernel.qk_channels} and {kernel.value_channels} channels"
            raise InvalidInput(f"kernel {kernel.name} is for {wanted}; node {node.name} has {q.dtype}, q {q.shape} and v {v.shape}")
        kind = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}[q.dtype]
        first = node.input[0]
        if (scale := float(found.attributes.get("scale", 1.0))) != 1.0:
            constant, first = f"{node.name}_scale", f"{node.name}_q_scaled"
            result.graph.initializer.append(helper.make_tensor(constant, kind, [], [scale]))
            made.insert(-1, helper.make_node("Mul", [node.input[0], constant], [first], name=f"{node.name}_scaling"))
        # `aot`: this implementation and no other; the parser finds the plugin by op_type, version and namespace
        fields: dict[str, Any] = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION, "aot": 1}
        inputs = [first, *node.input[1:]]
        made[-1] = helper.make_node(kernel.name, inputs, [*node.output], name=node.name, domain=NAMESPACE, **fields)
        if node.output[0] not in typed:  # nothing infers the type of a plugin's output
            result.graph.value_info.append(helper.make_tensor_value_info(node.output[0], kind, found.outputs[0].shape))
    del result.graph.node[:]
    result.graph.node.extend(made)
    return result


def told(label: str) -> Callable[[Function], Function]:
    """Make a function of a plugin's put its exceptions among TensorRT's messages; TensorRT only prints them, and fails."""

    def wrap(function: Function) -> Function:
        @functools.wraps(function)  # NVIDIA's validators see the function's own signature through it
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except Exception as error:
                MESSAGES.add("ERROR", f"plugin {label}: {type(error).__name__}: {error}")
                raise

        return call  # type: ignore[return-value]  # it has the function's arguments and result

    return wrap


def _declare(label: str, name: str, plugins: Plugins) -> None:
    """Give TensorRT the functions of one plugin."""
    try:
        import tensorrt.plugin as trtp  # type: ignore[import-not-found, unused-ignore]  # there where a GPU is
    except ImportError as error:
        install = "install TensorRT's Python package whole, or build without plugins"
        raise Unavailable("attention plugins", f"tensorrt.plugin cannot be imported ({error})", install) from error

    @trtp.register(label)
    @told(label)
    def describe(q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc) -> trtp.TensorDesc:
        batch, heads, channels, _ = v.shape_expr
        return trtp.from_shape_expr((batch, heads, channels, q.shape_expr[3]), dtype=v.dtype)

    @trtp.autotune(label)
    @told(label)
    def tune(
        q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        # networks are strongly typed: another type than the tensors' is never taken, and need not have a kernel for their sizes
        if (dtype := _NUMPY.get(q.dtype.name, q.dtype.name)) not in plugins.dtypes(name):
            raise InvalidInput(f"it has no kernel for {dtype}, but for {', '.join(plugins.dtypes(name))}")
        return [trtp.AutoTuneCombination(", ".join([TYPES[dtype]] * 4), "LINEAR")]

    @trtp.aot_impl(label)
    @told(label)
    def implement(
        q: trtp.TensorDesc, k: trtp.TensorDesc, v: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        kernel = plugins.kernel(name, _NUMPY[q.dtype.name], tuple(q.shape), tuple(k.shape))
        sizes = {dim: {"q": q, "k": k, "v": v}[tensor].shape_expr[axis] for dim, (tensor, axis) in AXES.items()}
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y, launch.grid_z = (_blocks(trtp, axis, sizes) for axis in kernel.grid_rule)
        launch.block_x, launch.shared_mem = kernel.threads, kernel.shared_bytes
        scalars = trtp.SymIntExprs(len(kernel.scalars))
        for index, dim in enumerate(kernel.scalars):
            scalars[index] = trtp.SymInt32(sizes[dim])
        return kernel.symbol, kernel.ptx, launch, scalars


def _blocks(trtp: Any, axis: Sequence[CeilDiv], sizes: Mapping[str, Any]) -> Any:
    """Return the expression of a launch's blocks along one axis; expressions of TensorRT's have their operators on the left."""
    factors = [sizes[factor.dim] if factor.divisor == 1 else trtp.cdiv(sizes[factor.dim], factor.divisor) for factor in axis]
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product
