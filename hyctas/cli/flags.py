"""Say how flags are parsed and shown by --help: groups, a value's type, its default where that says something. No torch here."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from hyctas.cli.values import bare

METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}
UNSAID = ("None", "False", "")
"""Defaults that say nothing: what the flag is for tells what happens without it."""


def registry(job: type, given: Mapping[str, Any]) -> ConstructorRegistry:
    """Return tyro's rules with ours for a job: every field as tyro would have it, but for its default, its group, and its help.

    Args:
        job: a dataclass.
        given: values by field that take the place of the dataclass's defaults.
    """
    rules, inside = ConstructorRegistry(), False

    @rules.struct_rule
    def readable(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or info.type is not job:
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        assert isinstance(spec, StructConstructorSpec)
        return dataclasses.replace(spec, fields=tuple(_readable(field, given) for field in spec.fields))

    return rules


def _readable(field: StructFieldSpec, given: Mapping[str, Any]) -> StructFieldSpec:
    shown = tyro.conf.arg(
        metavar=_metavar(field.type), help_behavior_hint=lambda value: "" if value in UNSAID else f"(default: {value})"
    )
    kind: Any = Annotated[field.type, shown]
    return dataclasses.replace(field, type=kind, default=given.get(field.name, field.default))


def _metavar(kind: Any) -> str | None:
    """Name the type of an optional value without the None; None leaves any other to tyro."""
    kind = bare(kind)
    if get_origin(kind) not in (Union, types.UnionType):
        return None
    (value,) = (bare(member) for member in get_args(kind) if member is not type(None))
    return "{" + ",".join(get_args(value)) + "}" if get_origin(value) is Literal else METAVARS.get(value)
