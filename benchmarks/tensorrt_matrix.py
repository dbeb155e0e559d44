"""Build networks of every kind with TensorRT-RTX, and write two tables: python -m benchmarks.tensorrt_matrix [--only TEXT].

`matrix.md` says of every network, precision and attention whether NVIDIA's parser and builder take it; `attention.md` says of every
attention of networks that attend how it is computed, and whether the builder makes one kernel of it. No GPU is needed, nothing is
timed. What was built before from the same sources is not built again (`cases.json`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_suite.records import sources
from benchmarks.tensorrt_case import build_all
from export.bench_report import markdown_rows
from export.onnx.precision import opset
from export.trt.attention_case import PRECISIONS as DTYPES

if TYPE_CHECKING:
    import onnx

    from export.trt.attention_case import AttentionCase
    from hyctas.arch.genotype import Genotype

SOURCES = ("export", "export/trt", "hyctas", "hyctas/attention", "hyctas/engine", "hyctas/published", "benchmarks")
"""What graphs and engines are made from."""
OUT = Path(__file__).parent / "results" / "tensorrt_rtx"
SIZE = (360, 480)
SIZES = (SIZE, (512, 1024))
"""Of the table of attention."""
CAPABILITY = 89
CLASSES = 19
PRECISIONS = ("fp32", "fp16", "bf16", "mixed")
BODIES = ("standard", "chosen", "plain", "padded", "grouped", "chunked")
"""How attention is written: as in a bundle's file; as an engine gets it; and every body by itself."""
CHUNKS = 8


def networks() -> dict[str, Genotype]:
    """Return networks by name: hand-made members of `edge`, the published ones, and samples of every space."""
    from hyctas import published, space
    from hyctas.spaces.members import members

    found = {f"edge:{name}": genotype for name, genotype in members().items()}
    found |= {f"published:{name}": published.genotype(name) for name in published.NAMES}
    spaces: dict[str, tuple[Any, tuple[int, ...]]] = {
        "edge": (space.edge(), (0, 9, 11)), "tiny": (space.tiny(), (194, 3)), "published": (space.published(), (1, 2)),
    }  # fmt: skip
    for label, (drawn, seeds) in spaces.items():
        found |= {f"{label} sample {seed}": drawn.sample(np.random.default_rng(seed)) for seed in seeds}
    return found


def exported(genotype: Genotype, size: tuple[int, int], folder: Path, nodes_opset: int = 0) -> onnx.ModelProto:
    """Return a network's fp32 graph, random weights; attention in standard operators, or as nodes of an operator set."""
    import onnx
    import torch

    from export.onnx.exporter import export_onnx
    from hyctas.attention.onnx.bodies import self_attention_function
    from hyctas.attention.onnx.nodes import nodes
    from hyctas.network import build

    torch.manual_seed(0)
    file = folder / "exported.onnx"
    network = build(genotype, CLASSES).eval()
    if nodes_opset:
        with nodes():
            export_onnx(network, size, file, opset=nodes_opset, functions=[self_attention_function(nodes_opset)])
    else:
        export_onnx(network, size, file)
    return onnx.load(file)


def in_types(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return a graph in a precision; of `mixed` the builder sees the types alone, so every third node is kept in fp32."""
    from export.trt.engine_precision import fp16, named
    from export.trt.prepare import prepared

    if precision != "mixed":
        return prepared(model, precision)
    again = named(model)
    return fp16(again, keep_nodes=[node.name for node in again.graph.node if node.op_type in ("Conv", "MatMul", "Relu")][::3])


def with_attention(model: onnx.ModelProto, body: str) -> onnx.ModelProto | None:
    """Return a graph whose attention nodes have a body; None where it suits none of them."""
    from export.onnx.functions import nodes_of
    from export.onnx.opset import standard_opset
    from export.trt.attention_case import AttentionCase
    from export.trt.choose import placed
    from hyctas.attention.onnx.bodies import refusal, self_attention_function
    from hyctas.attention.onnx.chunks import body_name, with_chunks
    from hyctas.engine.attention_choice import choose
    from hyctas.engine.context import named_context

    function = self_attention_function(standard_opset(model))
    if body == "chosen":
        return choose(model, function, named_context((CAPABILITY,))).model
    cases = {node.name: AttentionCase.of(node) for node in nodes_of(model, function)}
    if body == "chunked":
        sizes = {name: (case.queries, -(-case.queries // CHUNKS)) for name, case in cases.items()}
        bodies = {name: body_name(*size) for name, size in sizes.items()}
        return placed(model, with_chunks(function, sorted(set(sizes.values()))), bodies, {})
    bodies = {}
    for name, case in cases.items():
        wanted = "grouped_odd" if body == "grouped" and case.queries % 2 else body
        # of one head of few pairs `padded` is built here all the same: it computes what it should, unfused
        fits = body == "padded" or not refusal(wanted, case.shapes, "float16", 1 << 40)
        bodies[name] = wanted if fits else "plain"
    return placed(model, function, bodies, {}) if body == "plain" or set(bodies.values()) != {"plain"} else None


def graphs(
    genotype: Genotype, size: tuple[int, int], folder: Path, bodies: Sequence[str] = BODIES, precisions: Sequence[str] = PRECISIONS
) -> Iterator[tuple[str, str, Path]]:
    """Write a network's graph in every precision with every body; give precision, body and file."""
    import onnx

    standard = exported(genotype, size, folder) if "standard" in bodies else None
    others = [body for body in bodies if body != "standard"] if attending(genotype, size) else []
    opsets = {precision: opset("fp16" if precision == "mixed" else precision) for precision in precisions}
    with_nodes = {number: exported(genotype, size, folder, number) for number in set(opsets.values())} if others else {}
    for precision in precisions:
        made = {"standard": in_types(standard, precision)} if standard is not None else {}
        if others:
            typed = in_types(with_nodes[opsets[precision]], precision)
            made |= {body: graph for body in others if (graph := with_attention(typed, body)) is not None}
        for body, graph in made.items():
            file = folder / f"{precision}-{body}.onnx"
            onnx.save(graph, file)
            yield precision, body, file


def attending(genotype: Genotype, size: tuple[int, int]) -> list[AttentionCase]:
    """Return the distinct attentions of a network in fp16."""
    from export.trt.attention_case import AttentionCase
    from hyctas.arch.operators import SelfAttention
    from hyctas.plan import lower

    found = dict[AttentionCase, None]()
    for node in lower(genotype, size, CLASSES).needed():
        op = node.operator
        if isinstance(op, SelfAttention):
            sizes = op.layer_sizes(*node.input_shapes[0][1:])
            queries, keys = (int(np.prod(sizes[name])) for name in ("query", "value"))
            scale = 1.0 if op.scale is None else op.scale
            channels = op.qk_channels // op.heads, op.out // op.heads
            found[AttentionCase(1, op.heads, *channels, queries, keys, "float16", scale)] = None
    return list(found)


def alone(case: AttentionCase) -> onnx.ModelProto:
    """Return a graph of one attention as a node of the function."""
    from onnx import helper

    from hyctas.attention.onnx.nodes import DOMAIN, NAME, head_size

    q, k, v = case.shapes
    size = head_size(case.qk_channels, case.value_channels)
    pads = {"padding": size - q[2], "value_padding": size - v[2]}
    attributes: dict[str, Any] = {name: [0, 0, 0, 0, 0, 0, more, 0] for name, more in pads.items()}
    node = helper.make_node(
        NAME, ["q", "k", "v"], ["o"], name="attention", domain=DOMAIN, scale=case.scale, channels=[v[2]], **attributes
    )
    kind = {"float32": 1, "float16": 10, "bfloat16": 16}[case.dtype]
    shapes = {"q": q, "k": k, "v": v, "o": (*v[:3], q[3])}
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "attention", values[:3], values[3:])
    imports = [helper.make_opsetid("", opset(DTYPES[case.dtype])), helper.make_opsetid(DOMAIN, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model


def chosen(case: AttentionCase) -> tuple[str, str, dict[str, str]]:
    """Return the implementation of one attention, why, and why not the others: as `hyctas-export` chooses it without a GPU."""
    from export.onnx.opset import standard_opset
    from hyctas.attention.onnx.bodies import self_attention_function
    from hyctas.engine.attention_choice import choose
    from hyctas.engine.context import named_context

    model = alone(case)
    (found,) = choose(model, self_attention_function(standard_opset(model)), named_context((CAPABILITY,))).choices
    return found.implementation, found.reason, dict(found.refused)


def matrix_rows(names: Sequence[str], known: dict[str, Any], say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Build every network in every precision with every attention, a process each; give a row per case."""
    every, code = networks(), sources(SOURCES)
    for name in names:
        made_from = hashlib.sha256(repr((every[name].id, SIZE, CAPABILITY, code)).encode()).hexdigest()[:16]
        if name in known and known[name]["sources"] == made_from:
            yield from known[name]["rows"]
            continue
        with tempfile.TemporaryDirectory(prefix="hyctas-matrix-") as folder:
            cases = list(graphs(every[name], SIZE, Path(folder)))
            options = [{"precision": precision, "capabilities": [CAPABILITY]} for precision, _, _ in cases]
            built = build_all([(file, option) for (_, _, file), option in zip(cases, options, strict=True)])
        pairs = zip(cases, built, strict=True)
        rows = [{"network": name, "precision": kind, "attention": body, **asdict(made)} for (kind, body, _), made in pairs]
        known[name] = {"sources": made_from, "rows": rows}
        failed = sum(bool(row["error"]) for row in rows)
        say(f"{name}: {len(rows)} cases, {failed} refused")
        yield from rows


def matrix_table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the cases as Markdown: a line per network, and how many of its attentions are one kernel."""
    bodies = [body for body in BODIES if any(row["attention"] == body for row in rows)]
    lines = [["network", "precision", *bodies]]
    for network, precision in dict.fromkeys((row["network"], row["precision"]) for row in rows):
        cells = {row["attention"]: _cell(row) for row in rows if (row["network"], row["precision"]) == (network, precision)}
        lines.append([network, precision, *(cells.get(body, "") for body in bodies)])
    return markdown_rows(lines, len(lines[0])) + "\n"


def attention_table() -> str:
    """Write a line for every attention of every network at both sizes."""
    lines = [["network", "size", "attention", "heads", "d / e", "queries x keys", "computed as", "one kernel"]]
    answers: dict[AttentionCase, tuple[str, str, dict[str, str]]] = {}
    for name, genotype in networks().items():
        for size in SIZES:
            for number, case in enumerate(attending(genotype, size), 1):
                answers[case] = answers.get(case) or chosen(case)
                implementation, _, refused = answers[case]
                fused = implementation in ("fused", "grouped")
                why = "yes" if fused else f"no: {refused.get('fused', refused.get('grouped', ''))}"
                facts = str(case.heads), f"{case.qk_channels} / {case.value_channels}", f"{case.queries} x {case.keys}"
                lines.append([name, f"{size[0]}x{size[1]}", str(number), *facts, implementation, why])
    return markdown_rows(lines, len(lines[0]))


def main() -> None:
    """Run the command line."""
    from export.files import write_json, write_text
    from export.trt.rtx import import_rtx

    parser = argparse.ArgumentParser(description="Build networks of every kind with TensorRT-RTX. No GPU is needed.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the tables (default: {OUT})")
    parser.add_argument("--only", default="", help="networks whose name holds this text")
    args = parser.parse_args()
    version = import_rtx().__version__
    names = [name for name in networks() if args.only in name]
    kept = args.out / "cases.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    rows = []
    for row in matrix_rows(names, known, print):
        rows.append(row)
        write_json(kept, known)
    head = f"TensorRT-RTX {version}, sm_{CAPABILITY}, no GPU: built, never run, nothing timed. Written by `make tensorrt`.\n"
    built = sum(not row["error"] for row in rows)
    refused = sorted({row["error"].splitlines()[0] for row in rows if row["error"]})
    about = f"{len(rows)} cases at {SIZE[0]}x{SIZE[1]} with random weights: {built} built, {len(rows) - built} refused.\n"
    legend = "`built 2/3`: an engine was built, and two of three softmaxes are in a kernel that computes the whole attention.\n"
    title = "# What TensorRT-RTX builds\n"
    table = "\n".join([title, head, about, legend, matrix_table(rows), *(f"* {line}" for line in refused)])
    write_text(args.out / "matrix.md", table)
    print(about)
    if not args.only:
        title = "# Which attention TensorRT-RTX makes one kernel of (fp16)"
        write_text(args.out / "attention.md", f"{title}\n\n{head}\n{attention_table()}\n")
    print(f"wrote {args.out}")


def _cell(row: dict[str, Any]) -> str:
    if row["error"]:
        return "refused"
    return f"built {row['fused']}/{row['softmaxes']}" if row["softmaxes"] else "built"


if __name__ == "__main__":
    main()
