"""Register our attention plugin with made-up kernels; imported only where the real bindings are (see `bindings.py`)."""

from __future__ import annotations

from typing import Any

from export.plugin_kernel import CeilDiv, PluginKernel
from export.trt.plugin import PLUGINS

ACCEPTED = {
    "small": ("hyctas::SelfAttention_d8_e64", [((2, 1, 8, 2700), "HALF"), ((2, 1, 8, 2700), "HALF"), ((2, 1, 64, 2700), "HALF")]),
    "other_dtype": (
        "hyctas::SelfAttention_d8_e64",
        [((2, 1, 8, 2700), "BF16"), ((2, 1, 8, 2700), "BF16"), ((2, 1, 64, 2700), "BF16")],
    ),
    "wide": ("hyctas::SelfAttention_d64_e512", [((1, 3, 64, 96), "BF16"), ((1, 3, 64, 16), "BF16"), ((1, 3, 512, 16), "BF16")]),
    "twice": ("hyctas::SelfAttention_d8_e64", [((1, 1, 8, 61), "FLOAT"), ((1, 1, 8, 61), "FLOAT"), ((1, 1, 64, 61), "FLOAT")]),
}
"""Per function of registrations that NVIDIA must accept: the plugin's name, and inputs to try it with (shape, type)."""
PTX = """.version 8.7
.target sm_80
.address_size 64
.visible .entry {symbol}(.param .u64 .ptr .global q, .param .u64 .ptr .global k, .param .u64 .ptr .global v,
 .param .u32 N, .param .u32 M, .param .u64 .ptr .global o)
{{ ret; }}
"""
"""What the real one has, without the arithmetic."""


def kernel(d: int = 8, e: int = 64, dtype: str = "float16", **changes: Any) -> PluginKernel:
    """Return a kernel with the launch of `hyctas.attention.triton.plugin_compile`'s; `rows` and `channels` change it."""
    symbol = f"attend_{dtype}_{changes.get('query_multiple', 1)}_{changes.get('key_multiple', 1)}"
    rows, channels = changes.get("rows", 64), changes.get("channels", min(e, 256))
    values: dict[str, Any] = {
        "name": f"SelfAttention_d{d}_e{e}", "architecture": 80, "dtype": dtype, "qk_channels": d, "value_channels": e,
        "query_multiple": 1, "key_multiple": 1, "scalars": ("N", "M"), "hidden": 0,
        "grid_rule": ((CeilDiv("N", rows),), (CeilDiv("e", channels),), (CeilDiv("B"), CeilDiv("h"))), "threads": 128,
        "shared_bytes": 24576, "rows": rows, "columns": 64, "channels": channels, "registers": 128, "compiler": "triton 0",
        "source": "0", "symbol": symbol, "ptx": PTX.format(symbol=symbol),
    }  # fmt: skip
    return PluginKernel(**values | changes)


def small() -> None:
    """Register three kernels for one dtype that differ in what sizes they are made for."""
    import tensorrt as trt

    multiples = [{}, {"query_multiple": 4, "key_multiple": 4}, {"query_multiple": 16, "key_multiple": 64}]
    PLUGINS.register([kernel(**changes) for changes in multiples], trt)


def other_dtype() -> None:
    """Register a kernel for one dtype, and one for another that is made for few sizes."""
    import tensorrt as trt

    PLUGINS.register([kernel(dtype="bfloat16", rows=128), kernel(query_multiple=16, key_multiple=64)], trt)


def messages_of_a_failure(keys: int, kind: str) -> list[str]:
    """Register a kernel for fp16 and multiples of 16, drive it with other inputs as a build would, and return what is told."""
    from export.trt.log import MESSAGES
    from tests.export.trt.inside import evaluate_launch

    inputs = [((1, 1, 8, keys), kind), ((1, 1, 8, keys), kind), ((1, 1, 64, keys), kind)]
    try:
        evaluate_launch(f"{__name__}:even", "hyctas::SelfAttention_d8_e64", inputs)
    except Exception:
        return MESSAGES.take()
    raise AssertionError("nothing failed")


def even() -> None:
    """Register a kernel for multiples of 16 and 64."""
    import tensorrt as trt

    PLUGINS.register([kernel(query_multiple=16, key_multiple=64)], trt)


def wide() -> None:
    """Register a kernel that divides the channels of v among blocks."""
    import tensorrt as trt

    PLUGINS.register([kernel(64, 512, "bfloat16")], trt)


def compiled() -> None:
    """Register what Triton compiles for sm_80."""
    import tensorrt as trt

    from hyctas.attention.triton.plugin_compile import plugin_kernel

    PLUGINS.register([plugin_kernel(80, 8, 64, "float16", queries=2700, keys=2700)], trt)


def twice() -> None:
    """Register one plugin again, the second time with a kernel more."""
    import tensorrt as trt

    small()
    small()
    PLUGINS.register([kernel(dtype="float32", rows=32)], trt)
