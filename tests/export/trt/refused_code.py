"""Hold code that must be refused, so that the checks of the real code are seen to work; it is never imported.

A comment at the end of a line names the releases whose type stubs must refuse it; every other line must pass.
"""

from __future__ import annotations

from typing import Protocol

import tensorrt as trt


class Old(Protocol):
    def execute_async_v2(self, bindings: list[int], stream_handle: int, /) -> bool: ...


class WrongType(Protocol):
    def get_tensor_shape(self, name: str, /) -> str: ...


class Right(Protocol):
    def execute_async_v3(self, stream_handle: int, /) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...


def protocols(context: trt.IExecutionContext) -> None:
    right: Right = context
    old: Old = context  # refused: 10.3.0 10.16.1 11.4.0
    wrong: WrongType = context  # refused: 10.3.0 10.16.1 11.4.0
    print(right, old, wrong)


def build(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> bytes:
    config.set_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.FP16)  # refused: 11.4.0
    config.set_flag("TF32")  # refused: 10.3.0 10.16.1 11.4.0
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.max_workspace_size = 1 << 30  # refused: 10.3.0 10.16.1 11.4.0
    config.builder_optimization_level = 5
    builder.build_engine(network, config)  # refused: 10.3.0 10.16.1 11.4.0
    return bytes(builder.build_serialized_network(network, config))


def run(engine: trt.ICudaEngine, context: trt.IExecutionContext) -> None:
    context.set_tensor_address(engine.get_tensor_name(0), 0)
    context.set_input_shape("image", (1, 3, 64, 64))
    context.execute_async_v2([0], 0)  # refused: 10.3.0 10.16.1 11.4.0
    context.execute_async_v3(0)
    print(engine.num_bindings)  # refused: 10.3.0 10.16.1 11.4.0
