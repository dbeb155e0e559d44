"""Compile the Triton kernels offline, as the launcher would for a GPU, and read what the machine code costs. No GPU is needed.

Triton's wheel brings the compiler, the assembler and the disassembler. The machine code is called with blocks of `32 * warps`
threads, `metadata["shared"]` bytes of dynamic shared memory and, as arguments, those of the kernel that are no constants, in order,
followed by `hidden_parameters` null pointers.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from export.errors import HyctasError, Unavailable
from export.plugin_kernel import ptx_version
from hyctas.attention.triton.cases import MODULES, Case, arguments
from hyctas.attention.triton.resources import Resources

TENSOR_CORE_OPCODES = ("HMMA", "HGMMA", "UTCHMMA")


class DoesNotCompile(HyctasError):
    """A kernel was refused by the compiler or by its assembler; `case` and `reason` say which and why."""

    exit_code = 1

    def __init__(self, case: Case, reason: str) -> None:
        self.case, self.reason = case, reason
        super().__init__(f"{case.key} does not compile: {reason}")

    def __reduce__(self) -> tuple[type[DoesNotCompile], tuple[Case, str]]:
        return DoesNotCompile, (self.case, self.reason)


@dataclass(frozen=True, kw_only=True)
class Compiled(Resources):
    """A kernel's code for one architecture."""

    name: str
    """Entry point in the PTX and in the machine code."""
    ptx: str
    cubin: bytes
    hidden_parameters: int
    """Pointers after the arguments (to scratch memory of Triton's); null where its sizes in `metadata` are 0."""
    metadata: Mapping[str, Any]

    @property
    def resources(self) -> Resources:
        """Return the numbers alone."""
        return Resources(**{field.name: getattr(self, field.name) for field in fields(Resources)})


def missing() -> str:
    """Return why nothing can be compiled in this process; empty where it can."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set, so that Triton's interpreter stands in for the compiler: start a process without it"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with hyctas[dev] on Linux, and with CUDA builds of torch"
    return ""


def compile_case(case: Case, multiples: Mapping[str, int] | None = None, *, newest_ptx: tuple[int, int] | None = None) -> Compiled:
    """Compile one kernel.

    Args:
        case: what it is compiled for.
        multiples: powers of two that integer arguments are multiples of, where the case says less than is known.
        newest_ptx: the newest PTX that may be written; None: the newest that Triton's assembler knows, which drivers older than it
            do not read.

    Raises:
        Unavailable: without Triton, or in a process in which its interpreter stands in for the compiler.
        DoesNotCompile: the compiler or the assembler refuses it.
    """
    if why := missing():
        raise Unavailable("the offline compiler", why, "pip install triton, and unset TRITON_INTERPRET")
    from triton.compiler import ASTSource

    wanted = arguments(case)
    multiples = dict(multiples or {}) | dict.fromkeys(wanted.divisible, 16)
    places = {name: (place,) for place, name in enumerate(wanted.types)}
    module = importlib.import_module(f"hyctas.attention.triton.{MODULES.get(case.kernel, 'kernels')}")
    source = ASTSource(
        fn=getattr(module, f"{case.kernel}_kernel"),
        signature=dict(wanted.types),
        constexprs={places[name]: value for name, value in wanted.constants.items()},
        attrs={places[name]: [["tt.divisibility", multiples[name]]] if name in multiples else []
               for name, kind in wanted.types.items() if kind != "fp32"},  # as a launch, which finds this in Triton's cache
    )
    kernel = _kernel(case, source, newest_ptx)
    metadata, ptx = kernel.metadata._asdict(), kernel.asm["ptx"]
    listed = re.search(r"\.entry \w+\(([^)]*)\)", ptx)
    assert listed is not None
    visible = sum(kind != "constexpr" for kind in wanted.types.values())
    return Compiled(
        **vars(read_resources(kernel, case.arch)),
        name=metadata["name"],
        ptx=ptx,
        cubin=kernel.asm["cubin"],
        hidden_parameters=listed[1].count(".param") - visible,
        metadata=metadata,
    )


def _kernel(case: Case, source: Any, newest_ptx: tuple[int, int] | None) -> Any:
    """Have Triton compile a source for a case; return its `CompiledKernel`."""
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    options = {"num_warps": case.tile.warps, "num_stages": case.tile.stages}
    compiled = functools.partial(triton.compile, source, target=GPUTarget("cuda", case.arch, 32))
    try:
        # Triton prints all of the PTX that its assembler refuses; line numbers would put paths of this machine into the PTX
        with redirect_stdout(io.StringIO()), knobs.compilation.scope():
            knobs.compilation.disable_line_info = True
            kernel = compiled(options=options)
            # asked for afterwards, since the assembler refuses PTX that is newer than itself
            if newest_ptx is not None and ptx_version(kernel.asm["ptx"]) > newest_ptx:
                kernel = compiled(options={**options, "ptx_version": 10 * newest_ptx[0] + newest_ptx[1]})
    except (RuntimeError, ValueError, TypeError, triton.TritonError) as error:
        raise DoesNotCompile(case, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    return kernel


def read_resources(kernel: Any, arch: int) -> Resources:
    """Return what a kernel that Triton compiled for an architecture (a `CompiledKernel`) needs of a multiprocessor."""
    return Resources(
        **_read_machine_code(kernel.asm["cubin"], arch, kernel.metadata.shared),
        tensor_columns=getattr(kernel.metadata, "tmem_size", 0) or 0,
        scalar_dots=len(re.findall(r"tt\.dot .*-> tensor<[^>]*#blocked", kernel.asm["ttgir"])),
        warps=kernel.metadata.num_warps,
    )


def _read_machine_code(cubin: bytes, arch: int, dynamic_shared: int) -> dict[str, Any]:
    """Read registers, stack, shared memory and instructions with the wheel's disassembler.

    Its own field for spilled memory (LOCAL) stays 0 in kernels that spill; the stack and the instructions tell.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.is_file():
        raise Unavailable("the offline compiler", f"Triton's wheel brought no {tool.name}", "pip install --force-reinstall triton")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, option, file], capture_output=True, text=True, check=True, timeout=120).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    opcodes = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9]+)", code, re.MULTILINE))
    if found is None or not opcodes:
        raise Unavailable("the offline compiler", "its disassembler writes an unknown form", "install triton==3.7.1")
    registers, stack, static = map(int, found.groups())
    reserved = 1024 if arch >= 90 else 0  # by the driver, on top of what a block may ask for
    return {
        "registers": registers,
        "stack_bytes": stack,
        "spill_instructions": opcodes["STL"] + opcodes["LDL"],
        "shared_bytes": static - reserved + dynamic_shared,
        "tensor_core": {name: opcodes[name] for name in TENSOR_CORE_OPCODES if opcodes[name]},
    }
