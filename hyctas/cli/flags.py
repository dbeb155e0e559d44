"""Say how flags are shown by --help: a value's type, and its default where that says something. No torch here."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}
UNSAID = ("None", "False", "")
"""Defaults that say nothing: what the flag is for tells what happens without it."""


def registry() -> ConstructorRegistry:
    """Return tyro's rules with ours for dataclasses: every field as tyro would have it, but for its type's name and its default."""
    rules, inside = ConstructorRegistry(), False

    @rules.struct_rule
    def readable(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not dataclasses.is_dataclass(info.type):
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(_readable, spec.fields)))

    return rules


def _readable(field: StructFieldSpec) -> StructFieldSpec:
    shown = tyro.conf.arg(
        metavar=_metavar(field.type), help_behavior_hint=lambda value: "" if value in UNSAID else f"(default: {value})"
    )
    kind: Any = Annotated[field.type, shown]
    return dataclasses.replace(field, type=kind)


def _metavar(kind: Any) -> str | None:
    """Name the type of an optional value without the None; None leaves any other to tyro."""
    kind = _bare(kind)
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    (value,) = (_bare(member) for member in get_args(kind) if member is not type(None))
    return "{" + ",".join(get_args(value)) + "}" if get_origin(value) is Literal else METAVARS[value]


def _bare(kind: Any) -> Any:
    """Return a type without what annotates it; nested annotations are one."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
