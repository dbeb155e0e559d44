"""What README and docs name exists: links, files, commands, flags, make targets, settings, fields of formats, the example space."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tyro

from export.bench_report import BenchReport, BenchResult
from export.bundle.manifest import Manifest
from export.int8.loss import Int8Loss, SplitLoss
from export.parity import ParityReport
from export.ranges import hints, limits
from export.trt.engine_file import EngineManifest, Machine
from hyctas import published
from hyctas.arch.genotype import DECODERS, HEAD_BLOCKS, HEAD_KINDS, Arithmetic, Attention, Cell, Fusion, Genotype, Head
from hyctas.cli.entry import command
from hyctas.cli.profile import ProfileJob
from hyctas.cli.search import SearchJob
from hyctas.cli.train import TrainSupernetJob
from hyctas.data import Score
from hyctas.engine.settings import EngineSettings, LoadSettings
from hyctas.plan import lower
from hyctas.search.history import Evaluation
from hyctas.search.limits import Limits
from hyctas.search.search_settings import SearchSettings
from hyctas.space import AttentionVariant, Space, Stage, edge, tiny
from hyctas.spaces import stages
from hyctas.spaces.members import members
from hyctas.spaces.space_file import load_space
from hyctas.training.config import NetworkRecipe, Recipe, SupernetRecipe
from latency import Protocol
from latency.accuracy import Fidelity
from latency.calibration import Calibration
from latency.identity import Identity
from latency.table import Row

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
OWN_SPACE = ROOT / "docs/own_space.py"
SUBCOMMANDS = {"hyctas-train": ("supernet", "network")}
HOSTS = {"arxiv.org"}
"""Where links may lead. No page names a package index: it would be out of date, or somebody's own."""

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def code(text: str) -> list[str]:
    """List the pieces of code: inline spans, and the lines of blocks (continued ones joined)."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}\S.*$", text, re.MULTILINE)
    lines = "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()
    spans = re.findall(r"`([^`]+)`", re.sub(r"^ {4,}\S.*$", "", text, flags=re.MULTILINE))
    return [line.partition(" #")[0].strip() for line in lines] + [" ".join(span.split()) for span in spans]


@functools.cache
def help_flags(name: str, *sub: str) -> frozenset[str]:
    """Return the flags that a command's help describes."""
    module = f"hyctas.cli.{name.removeprefix('hyctas-')}"
    assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"{name}: {module} is missing"
    main, out = importlib.import_module(module).main, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        patch.setenv("COLUMNS", "200")
        patch.setattr("sys.argv", [name, *sub, "--help"])
        main()
    assert out.getvalue(), f"{name} --help printed nothing"
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", out.getvalue())) | {"--config", "--help"}


def commands(piece: str) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Yield (command, its subcommand, flags) of every hyctas command in a piece of code."""
    for part in re.split(r"&&|\||;", piece):
        found = re.search(r"(hyctas-[a-z]+)(?![\w.-])(.*)", part)
        if found:
            rest = found[2].split()
            sub = tuple(rest[:1]) if rest[:1] and rest[0] in SUBCOMMANDS.get(found[1], ()) else ()
            yield found[1], sub, [word.partition("=")[0] for word in rest if word.startswith("--")]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            assert target.split("/")[2] in HOSTS, target
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{path.name} links to {target}"


@page
def test_files_of_the_project_exist(path: Path) -> None:
    for piece in code(path.read_text()):
        for name in re.findall(r"\b(?:hyctas|latency|export|benchmarks|docs|tests)/[\w./]*\w\.(?:py|md|txt)\b", piece):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


@page
def test_commands_and_flags(path: Path) -> None:
    known: set[str] = set()
    for short in ("profile", "train", "search", "export", "bench", "predict", "doctor", "demo"):
        for sub in ((), *((name,) for name in SUBCOMMANDS.get(f"hyctas-{short}", ()))):
            known |= help_flags(f"hyctas-{short}", *sub)
    for piece in code(path.read_text()):
        for name, sub, flags in commands(piece):
            unknown = set(flags) - help_flags(name, *sub)
            assert not unknown, f"{path.name}: {piece}: {' '.join((name, *sub))} has no {unknown}"
        alone = piece.split(" ")[0].partition("=")[0] if piece.startswith("--") else "--help"
        assert alone in known, f"{path.name}: no command has {piece}"


@page
def test_make_targets_and_variables(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??=", makefile, re.MULTILINE))
    for piece in code(path.read_text()):
        words = piece.split()
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, f"{path.name}: {piece}"
            assert {word.partition("=")[0] for word in words[2:] if "=" in word} <= variables, f"{path.name}: {piece}"


@page
def test_nothing_is_left_to_fill_in(path: Path) -> None:
    assert "<<" not in path.read_text(), "a marker is left"


@pytest.mark.parametrize("kind", [Recipe, NetworkRecipe, SupernetRecipe, ProfileJob, SearchJob, SearchSettings, Protocol])
def test_every_setting_is_described(kind: type) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for field in dataclasses.fields(kind):
        if tyro.conf.Fixed in get_args(hints(kind)[field.name]):  # no flag: its settings stand in a table of their own
            continue
        allowed = limits(hints(kind)[field.name])
        row = f"| `{field.name}` | `{default(field)}` |{f' {allowed}' if allowed else ''} |"
        assert row in text, row


def test_the_example_toml_is_accepted(tmp_path: Path) -> None:
    block = re.search(r"^    # train.toml\n(?:    .*\n)+", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert block is not None
    (tmp_path / "train.toml").write_text(textwrap.dedent(block[0]))
    jobs: list[TrainSupernetJob] = []
    command(jobs.append, TrainSupernetJob, "", ["--config", str(tmp_path / "train.toml")])
    recipe = jobs[0].recipe()
    assert isinstance(recipe, SupernetRecipe)
    assert (recipe.size, recipe.crop, recipe.learning_rate, recipe.amp) == ((360, 480), (240, 320), 1e-3, False)


def default(field: dataclasses.Field[object]) -> str:
    """Write a default as the page does: text and paths bare where they name a run folder, space or size."""
    value = field.default
    return str(value) if isinstance(value, (str, Path)) and field.name != "loss" else repr(value)


FORMATS = (
    BenchReport, BenchResult, Manifest, ParityReport, Score, Genotype, Cell, Fusion, Head, Attention, Arithmetic,
    Evaluation, Limits, Calibration, Fidelity, Identity, Row, EngineManifest, Machine, Int8Loss, SplitLoss,
)  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_listed_with_its_class(kind: type) -> None:
    rows = [line for line in (ROOT / "docs/formats.md").read_text().splitlines() if f"`{kind.__name__}`" in line]
    assert any(f"`{kind.__module__.replace('.', '/')}.py`" in row for row in rows), f"docs/formats.md does not list {kind.__name__}"


@pytest.mark.parametrize("kind", [Space, Stage, AttentionVariant])
def test_every_field_of_a_space_is_described(kind: type) -> None:
    text = (ROOT / "docs/own_space.md").read_text()
    missing = [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in text]
    assert not missing, f"docs/own_space.md does not name {missing} of {kind.__name__}"


def test_every_operator_and_choice_of_a_space_is_described() -> None:
    text = (ROOT / "docs/own_space.md").read_text()
    assert all(f"| `{name}` |" in text for name in stages.cells_of_stages() if name != "skip")
    for name in (*stages.STEMS, *DECODERS, *HEAD_KINDS, *HEAD_BLOCKS, "skip"):
        assert f"`{name}`" in text, name


def test_the_python_of_own_space_md_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r'^    python -c "\n(.*?)"', (ROOT / "docs/own_space.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(textwrap.dedent(block), {})
    written = capsys.readouterr().out.splitlines()[-1]
    assert Genotype.from_json(written).final_strides == (16,)


def test_every_difference_is_described() -> None:
    text = (ROOT / "docs/published.md").read_text()
    assert all(f"| `{field.name}` |" in text for field in dataclasses.fields(Arithmetic))


@page
def test_hand_made_networks_exist(path: Path) -> None:
    names = set(re.findall(r"\bedge:([a-z][\w-]*\w)", path.read_text()))
    assert names <= set(members()), f"{path.name} names {names - set(members())}"


@page
def test_named_tests_exist(path: Path) -> None:
    for name, function in re.findall(r"\b(test_\w+\.py)::(test_\w+)", path.read_text()):
        files = list((ROOT / "tests").rglob(name))
        assert len(files) == 1 and f"def {function}(" in files[0].read_text(), f"{path.name} names {name}::{function}"


def test_the_messages_of_tensorrt_md_are_ours() -> None:
    text = (ROOT / "docs/tensorrt.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## Known problems")[2].partition("## ")[0], re.MULTILINE)
    assert len(rows) == 10
    source = "".join(path.read_text() for folder in ("export", "hyctas") for path in (ROOT / folder).rglob("*.py"))
    for fragment in (part for row in rows for message in re.findall("`([^`]+)`", row) for part in message.split("...")):
        assert fragment.strip() in source, fragment


def test_the_settings_of_tensorrt_md_exist() -> None:
    text = (ROOT / "docs/tensorrt.md").read_text()
    for field in dataclasses.fields(EngineSettings):
        value = "none" if field.default is None else f"`{str(field.default).lower()}`"
        assert f"| `{field.name}` | {value} |" in text, field.name
    assert all(f"`{field.name}`" in text for field in dataclasses.fields(LoadSettings))


def test_the_python_of_published_md_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hyctas.published.checkpoint import PublishedNetwork

    genotype = published.genotype("S", 6)
    torch.save(PublishedNetwork(genotype, 19).state_dict(), tmp_path / "best.pth")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/published.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    exec("\n".join(blocks), {})


def test_the_example_space_can_be_trained() -> None:
    """Its branch sets lack one to 1/8, which fusion has an input block for."""
    import torch

    from hyctas.nn.supernet import Supernet

    space = load_space(str(OWN_SPACE))
    supernet, rng = Supernet(space, 3), np.random.default_rng(0)
    for genotype in (space.largest(), space.smallest(), *(space.sample(rng) for _ in range(20))):
        assert supernet.forward_native(genotype, torch.zeros(2, 3, 40, 56)).shape[:2] == (2, 3)


def test_the_numbers_of_networks() -> None:
    text = (ROOT / "docs/method.md").read_text()
    for space in (edge(), tiny()):
        largest: dict[int, float] = {}
        for branches in space.branch_sets:
            others = tuple(f"b{final}." for final in {8, 16, 32} - {*branches})
            own = [choices for name, choices in space.genes if name != "branches" and not name.startswith(others)]
            largest[len(branches)] = max(sum(map(math.log10, own)), largest.get(len(branches), 0))
        assert " / ".join(f"10^{power:.1f}" for power in largest.values()) in text, space.name


def test_the_example_space() -> None:
    space, size = load_space(str(OWN_SPACE)), (360, 480)
    keys, text = space.keys(size), (ROOT / "docs/own_space.md").read_text()
    rng = np.random.default_rng(0)
    for _ in range(30):
        genotype = space.sample(rng)
        assert space.decode(space.encode(genotype)) == genotype
        assert {node.key for node in lower(genotype, size, 19).nodes} <= set(keys)
    assert f"the example has {len(keys)}" in text and f"{len(edge().keys(size))} keys" in text
