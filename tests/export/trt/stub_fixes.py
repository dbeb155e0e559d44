"""Make the type stubs valid that pybind11-stubgen dumps from TensorRT's extension module.

| in the dump                                                        | here                                                 |
|--------------------------------------------------------------------|------------------------------------------------------|
| 1. an argument is named `in`                                       | `in_`                                                |
| 2. a default is a repr: `= <DataType.FLOAT: 0>`                    | `= ...`                                              |
| 3. an argument without default follows one with                    | it gets `= ...` too                                  |
| 4. the module's variable `bool` (a DataType) hides the built-in    | annotations say `builtins.bool`                      |
| 5. the default is None, the type does not allow it                 | `X | None`                                           |
| 6. `typing.SupportsInt` and alike, which no callback could narrow  | `int`, `float`                                       |
| 7. an argument's type that Python values convert to                | `Dims | Sequence[int]` and alike                     |
| 8. `IHostMemory` gives its bytes by the buffer protocol, unseen    | `__buffer__`                                         |
| 9. `...` for a type that stubgen did not understand, and `capsule` | `typing.Any`                                         |

What mypy then still says of the dump is of kinds that do not matter to who uses it (`HEADER`); names that are not defined would
matter, since they would count as `Any` without a word, so mypy is to look at the stub as well.
"""

from __future__ import annotations

import ast
import re

NUMBERS = {"SupportsInt": "int", "SupportsIndex": "int", "SupportsFloat": "float"}
CONVERTED = {
    "Dims": "Dims | collections.abc.Sequence[int]",
    "Permutation": "Permutation | collections.abc.Sequence[int]",
    "Weights": "Weights | numpy.ndarray",
}
"""What pybind11 converts to an argument's type (`py::implicitly_convertible` in NVIDIA/TensorRT, python/src)."""
HEADER = """# mypy: disable-error-code="misc, override, assignment, overload-cannot-match, no-untyped-def"
from __future__ import annotations
import builtins
import collections.abc
import numpy
import typing
"""
BUFFER = "def __buffer__(self, flags: int, /) -> memoryview: ..."


def fixed(dump: str) -> str:
    """Return a valid stub for what pybind11-stubgen printed of the extension module.

    Raises:
        SyntaxError: the dump has an error that is not in the table.
    """
    text = re.sub(r"([(,]\s*)(in|from|lambda|is)(\s*:)", r"\1\2_\3", dump)  # 1
    text = re.sub(r"= <[^>\n]*>", "= ...", text)  # 2
    tree = ast.parse("\n".join(_with_defaults(line) for line in text.splitlines()))
    stub = ast.unparse(ast.fix_missing_locations(_Definitions().visit(tree)))
    return HEADER + stub.replace("from __future__ import annotations\n", "", 1) + "\n"


def _with_defaults(line: str) -> str:
    """Give arguments that follow one with a default a default as well (3)."""
    found = re.match(r"(\s*def \w+\()(.*)(\)[^)]*)$", line)
    if not found or _parses(f"{line.strip()}\n ..."):
        return line
    optional, arguments = False, []
    for argument in _split(found[2]):
        add = optional and "=" not in argument and not argument.startswith("*")
        optional = optional or "=" in argument
        arguments.append(f"{argument} = ..." if add else argument)
    return found[1] + ", ".join(arguments) + found[3]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _split(arguments: str) -> list[str]:
    """Split at the commas outside of all brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


class _Types(ast.NodeTransformer):
    """Mend what stands in an annotation (4, 6, 9)."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _expression({"bool": "builtins.bool", "capsule": "typing.Any"}.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return _expression(NUMBERS[node.attr]) if node.attr in NUMBERS else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return _expression("typing.Any") if node.value is Ellipsis else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.slice, ast.Tuple):  # the dots of Callable[..., X] and tuple[X, ...] stay
            node.slice.elts = [part if _dots(part) else self.visit(part) for part in node.slice.elts]
        else:
            node.slice = self.visit(node.slice)
        return node


class _Conversions(ast.NodeTransformer):
    """Widen an argument's annotation by what is converted to it (7)."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return _expression(CONVERTED[node.id]) if node.id in CONVERTED else node


class _Definitions(ast.NodeTransformer):
    """Mend classes, functions and variables."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        if node.name == "IHostMemory":
            node.body += ast.parse(BUFFER).body  # 8
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = _Types().visit(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if node.returns is not None:
            node.returns = _Types().visit(node.returns)
        arguments = node.args
        ordered = [*arguments.posonlyargs, *arguments.args]
        for argument in [*ordered, *arguments.kwonlyargs, *filter(None, (arguments.vararg, arguments.kwarg))]:
            if argument.annotation is not None:
                argument.annotation = _Conversions().visit(_Types().visit(argument.annotation))
        defaults = list(zip(reversed(ordered), reversed(arguments.defaults), strict=False))
        for argument, default in [*defaults, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]:
            if argument.annotation is not None and isinstance(default, ast.Constant) and default.value is None:
                argument.annotation = ast.BinOp(argument.annotation, ast.BitOr(), ast.Constant(None))  # 5
        arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
        if ordered and ordered[0].arg == "self":
            ordered[0].annotation = None
        return node


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis
