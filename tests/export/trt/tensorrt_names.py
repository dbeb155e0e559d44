"""Find every name of TensorRT's that source code uses, without running it.

A use is a chain of attributes on something that is bound to the module:

| code                                                  | use                                            |
|-------------------------------------------------------|------------------------------------------------|
| `trt.BuilderFlag.TF32`, `self.trt.BuilderFlag.TF32`   | `BuilderFlag.TF32`                             |
| `import tensorrt as t; t.Logger`                      | `Logger`                                       |
| `t = import_tensorrt(); t.Logger`                     | `Logger`                                       |
| `flags = trt.BuilderFlag`, later `flags.TF32`         | `BuilderFlag`, `BuilderFlag.TF32`              |
| `trtp.cdiv`, `trt.plugin.cdiv`                        | `plugin.cdiv`                                  |
| `getattr(trt.BuilderFlag, "FP16")`                    | `BuilderFlag.FP16`                             |
| `getattr(trt.BuilderFlag, name)` (and `hasattr`)      | computed: the names among the function's texts |
| `hasattr(engine, "device_memory_size_v2")`            | member: of some class of TensorRT's            |

Names `trt`, `tensorrt` and `trtp` count as bound wherever they stand (they are parameters, mostly), unless an import of something
else binds them. What is called on objects (`config.set_flag`) is not seen here: our protocols and mypy hold that.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOTS = {"trt": "", "tensorrt": "", "trtp": "plugin"}
"""Variables and attributes that hold the module, and what is put before the names on them."""


@dataclass(frozen=True)
class Use:
    """A name of TensorRT's in our code."""

    name: str
    """Without the module: `BuilderFlag.TF32`."""
    where: str
    """`file:line`."""
    kind: str = "direct"
    """`direct`, or as the table above says `computed` (`name` is one candidate) or `member`."""


def uses_in(source: str, file: str) -> list[Use]:
    """Return the uses in a Python source, in its order; `file` is what their `where` says."""
    tree = ast.parse(source)
    finder = _Finder(file)
    finder.visit(tree)
    return finder.uses


def uses_in_tree(root: Path, packages: tuple[str, ...]) -> list[Use]:
    """Return the uses in every Python file of packages."""
    files = [path for package in packages for path in sorted((root / package).rglob("*.py"))]
    sources = {path.relative_to(root).as_posix(): path.read_text() for path in files}
    return [use for file, source in sources.items() if any(name in source for name in ROOTS) for use in uses_in(source, file)]


class _Finder(ast.NodeVisitor):
    """Walk a module in source order; `scopes` maps variables to the chain that they hold, None where it is something else."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.uses: list[Use] = []
        self.scopes: list[dict[str, str | None]] = [dict(ROOTS)]
        self.function: ast.AST | None = None

    def chain(self, node: ast.AST) -> str | None:
        """Return the name that an expression stands for, "" for the module itself, None if it is none of TensorRT's."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Call):
            return self._imported(node)
        if not isinstance(node, ast.Attribute):
            return None
        base = self.chain(node.value)
        if base is not None:
            return f"{base}.{node.attr}" if base else node.attr
        ours = isinstance(node.value, ast.Name) and node.value.id == "export"  # our package export.trt
        return None if ours else ROOTS.get(node.attr.lstrip("_"))

    def add(self, name: str | None, node: ast.AST, kind: str = "direct") -> None:
        if name:
            self.uses.append(Use(name, f"{self.file}:{getattr(node, 'lineno', 0)}", kind))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.chain(node)
        if name is None:
            self.generic_visit(node)
        else:
            self.add(name, node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname or "." not in alias.name:
                self.scopes[-1][alias.asname or alias.name] = self._module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._module(node.module) if node.module and not node.level else None
        for alias in node.names:
            name = None if base is None else f"{base}.{alias.name}".lstrip(".")
            self.add(name if name != "plugin" else None, node)
            if name is not None or alias.name in ROOTS:
                self.scopes[-1][alias.asname or alias.name] = name

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
            if isinstance(target, ast.Name):
                self._bind(target.id, self.chain(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and node.value is not None:
            self._bind(node.target.id, self.chain(node.value))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.function = self.function, node
        self.scopes.append({})
        self.generic_visit(node)
        self.scopes.pop()
        self.function = outer

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) >= 2):
            return
        base, name = self.chain(node.args[0]), node.args[1]
        if isinstance(name, ast.Constant) and base is None:
            self.add(str(name.value), node, "member")
        elif isinstance(name, ast.Constant):
            self.add(f"{base}.{name.value!s}".lstrip("."), node)
        elif base is not None:
            texts = [part.value for part in ast.walk(self.function or node) if isinstance(part, ast.Constant)]
            names = dict.fromkeys(text for text in texts if isinstance(text, str) and text.isidentifier())
            for text in names or {"?": None}:
                self.add(f"{base}.{text}".lstrip("."), node, "computed")

    def _bind(self, variable: str, name: str | None) -> None:
        known = any(variable in scope for scope in self.scopes)
        if name is not None or (known and variable not in ROOTS):
            self.scopes[-1][variable] = name

    def _imported(self, call: ast.Call) -> str | None:
        function = ast.unparse(call.func).rpartition(".")[2]
        if function == "import_tensorrt":
            return ""
        literal = call.args[0] if function == "import_module" and call.args else None
        return self._module(literal.value) if isinstance(literal, ast.Constant) else None

    @staticmethod
    def _module(name: object) -> str | None:
        return {"tensorrt": "", "tensorrt.plugin": "plugin"}.get(str(name))
