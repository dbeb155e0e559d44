"""Say what fixes an error: commands and flags for what libraries raise as data."""

from __future__ import annotations

import shlex

from export.errors import Give, HyctasError, LeaveOut, Perform, Remedy, StartOver


def explain(error: HyctasError) -> str:
    """Return an error's text, with every way on that it names."""
    ways = list(dict.fromkeys(map(advice, error.remedies)))
    if not ways:
        return str(error)
    joined = f"{', '.join(ways[:-1])}, or {ways[-1]}" if len(ways) > 1 else ways[0]
    listed = str(error).splitlines()[-1].startswith(" ")
    return f"{error}\n{joined[0].upper()}{joined[1:]}" if listed else f"{error}; {joined}"


def advice(remedy: Remedy) -> str:
    """Return what to do, as a part of a sentence."""
    match remedy:
        case Give(setting, value, purpose):
            given = " ".join(filter(None, (flag(setting), value)))
            return f"{purpose} ({given})" if purpose else f"give {given if value else f'another {given}'}"
        case LeaveOut(settings):
            return f"leave {' and '.join(map(flag, settings))} out"
        case StartOver():
            return f"start over with {flag('restart')}"
        case Perform(step, settings, argument):
            return f"run {command_line(step, argument, **settings)}"
    return remedy


def command_line(step: str, argument: object = "", **settings: object) -> str:
    """Return the command of a step; a setting that is true is a flag alone, one that is false or none is left out."""
    words = [f"hyctas-{step.partition(' ')[0]}", *step.split()[1:], *filter(None, [str(argument)])]
    for name, value in settings.items():
        if value is not None and value is not False:
            words += [flag(name)] if value is True else [flag(name), str(value)]
    return shlex.join(words)


def flag(setting: str) -> str:
    """Return the flag of a setting."""
    return f"--{setting.replace('_', '-')}"
