"""Register small plugins with `tensorrt.plugin`, right and wrong ones; imported only where the real bindings are.

No `from __future__ import annotations` here: NVIDIA's validators read the annotations, and refuse strings.
"""

import tensorrt as trt
import tensorrt.plugin as trtp

ACCEPTED = {"right": ("hyctas_tests::sample", [((3, 16, 8200), "HALF"), ((3, 128, 8200), "HALF")])}
"""Per function of registrations that NVIDIA must accept: the plugin's name, and inputs to try it with (shape, type)."""


def right() -> None:
    """Register an operator with two outputs, whose launch depends on the shapes and on the tactic."""

    @trtp.register("hyctas_tests::sample")
    def describe(q: trtp.TensorDesc, v: trtp.TensorDesc) -> tuple[trtp.TensorDesc, trtp.TensorDesc]:
        sums = trtp.from_shape_expr((q.shape_expr[0], q.shape_expr[2]), dtype=trt.float32)
        return v.like(), sums

    @trtp.autotune("hyctas_tests::sample")
    def tune(
        q: trtp.TensorDesc, v: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc]
    ) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination("FP16|BF16, FP16|BF16, FP16|BF16, FP32", "LINEAR", [1, 2])]

    @trtp.aot_impl("hyctas_tests::sample")
    def implement(
        q: trtp.TensorDesc, v: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc, trtp.TensorDesc], tactic: int
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        positions, channels = q.shape_expr[2], v.shape_expr[1]
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(positions, 64 * tactic)
        launch.grid_y = q.shape_expr[0]
        launch.block_x, launch.shared_mem = 128 * tactic, 1024
        scalars = trtp.SymIntExprs(2)
        scalars[0], scalars[1] = trtp.SymInt32(positions), trtp.SymInt32(positions * channels)
        return f"sample_{q.dtype.name.lower()}", "// text of a kernel", launch, scalars


def no_tactic() -> None:
    """Leave out the argument `tactic` of the implementation."""
    _describe("hyctas_tests::no_tactic")

    @trtp.aot_impl("hyctas_tests::no_tactic")
    def implement(
        q: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc]
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        raise AssertionError("never called")


def wrong_return() -> None:
    """Return three things from the implementation."""
    _describe("hyctas_tests::wrong_return")

    @trtp.aot_impl("hyctas_tests::wrong_return")
    def implement(q: trtp.TensorDesc, outputs: tuple[trtp.TensorDesc], tactic: int) -> tuple[str, str, trtp.KernelLaunchParams]:
        raise AssertionError("never called")


def list_attribute() -> None:
    """Register an attribute of a type that is not allowed."""

    @trtp.register("hyctas_tests::list_attribute")
    def describe(q: trtp.TensorDesc, sizes: list) -> trtp.TensorDesc:
        return q.like()


def reserved_namespace() -> None:
    """Register a name of NVIDIA's own namespace."""
    _describe("trt::sample")


def _describe(name: str) -> None:
    @trtp.register(name)
    def describe(q: trtp.TensorDesc) -> trtp.TensorDesc:
        return q.like()
