"""Say how flags are parsed and shown by --help: groups, a value's type, its default where that says something."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping
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
        job: a dataclass; its `GROUPS`, where it has them, name the fields that stand under a title of their own in the help.
        given: values by field that take the place of the dataclass's defaults.
    """
    rules, asked = ConstructorRegistry(), False
    groups = {type(title, (), {}): names for title, names in getattr(job, "GROUPS", {}).items()}
    inside: dict[Any, list[StructFieldSpec]] = {group: [] for group in groups}

    @rules.struct_rule
    def grouped(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asked
        if info.type in inside:
            return StructConstructorSpec(instantiate=dict, fields=tuple(inside[info.type]))
        if asked or info.type is not job:
            return None
        asked = True
        spec = ConstructorRegistry.get_struct_spec(info)
        asked = False
        assert isinstance(spec, StructConstructorSpec)
        home = {name: group for group, names in groups.items() for name in names}
        plain: list[StructFieldSpec] = []
        for found in inside.values():
            found.clear()
        for field in spec.fields:
            inside.get(home.get(field.name), plain).append(_readable(field, given))
        titled: Any = tyro.conf.OmitArgPrefixes
        boxes = (StructFieldSpec(group.__name__, titled[group], tyro.MISSING) for group in groups)
        return StructConstructorSpec(lambda **values: spec.instantiate(**_flat(values, groups)), (*plain, *boxes))

    return rules


def _flat(values: Mapping[str, Any], groups: Collection[type]) -> dict[str, Any]:
    """Return values by field, those of groups among them."""
    flat = dict(values)
    for group in groups:
        flat |= flat.pop(group.__name__)
    return flat


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
