"""Which attention is taken: by parity, by times, by what is refused, without measuring, and what then stands in the graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import pytest

from export.errors import InvalidInput, Unavailable
from export.onnx.functions import attach
from export.runtime import TensorSpec
from export.trt.attention_benchmark import Benchmarks, CudaBroken, EngineBackend, Rounds
from export.trt.attention_case import LIMITS, AttentionCase, as_fed, as_float, example, rounded
from export.trt.choose import VARIABLE, AttentionChoice, Candidate, NoAttention, choose_attention, take_first
from export.trt.cuda.device import CudaFailed
from export.trt.log import TensorRTFailed
from hyctas.attention.onnx.bodies import self_attention_function
from hyctas.attention.onnx.chunks import MOST_CHUNKS, body_name, chunk_rows, with_chunks
from tests.export.trt import attention_plugin as made
from tests.export.trt.test_trt_plugin import graph

CHUNKED = body_name(32, 12)
FUNCTION = with_chunks(self_attention_function(), [(32, 12)])
CASE = AttentionCase(1, 1, 8, 64, 32, 32, "float16", 0.5)
TIMES = {"fused": 2.0, "decomposed": 3.0, "chunked": 4.0, "plugin": 1.0}
ROUNDS = Rounds(warm_up=2, rounds=4, steps=3)
BODIES = {"fused": "padded", "decomposed": "plain", "chunked": CHUNKED}


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """Compute attention plainly, in float64."""
    logits = np.swapaxes(q.astype(np.float64) * scale, 2, 3) @ k
    weights = np.exp(logits - logits.max(3, keepdims=True))
    return np.asarray(v @ np.swapaxes(weights / weights.sum(3, keepdims=True), 2, 3))


def implementation_of(model: onnx.ModelProto) -> str:
    """Tell from its operators what a graph of one attention is."""
    operators = {node.op_type for node in model.graph.node}
    for name in operators:
        if name.startswith("SelfAttention"):
            return "plugin"
    return "fused" if "Pad" in operators else "chunked" if "Slice" in operators else "decomposed"


@dataclass
class Session:
    """Attention in numpy that takes as long as it is told."""

    lab: Engines
    name: str
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    bound: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self.inputs = tuple(TensorSpec(name, self.shapes[name], self.dtype) for name in self.lab.names)
        self.outputs = (TensorSpec("o", self.shapes["o"], self.dtype),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        assert not self.closed and all(array.dtype == self.dtype for array in feeds.values())
        if self.name in self.lab.run_fails:
            self.lab.break_cuda(self.name)
            raise CudaFailed("waiting for a stream", self.lab.run_fails[self.name])
        q, k, v = (as_float(feeds[name]).astype(np.float64) for name in "qkv")
        output = attention(q, k, v, self.lab.scale)
        return [as_fed(self.lab.spoil.get(self.name, lambda o, _: o)(output, k).astype(np.float32), self.outputs[0])]

    def bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        self.bound = set(feeds) == {"q", "k", "v"}

    def step(self) -> float:
        assert self.bound and not self.closed
        self.lab.steps.append(self.name)
        if self.lab.steps.count(self.name) > self.lab.fails_after.get(self.name, 10**9):
            self.lab.break_cuda(self.name)
            raise CudaFailed("launching", "too many resources requested for launch")
        return self.lab.times[self.name]

    def results(self) -> list[np.ndarray]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True
        if self.lab.dead:
            raise CudaFailed("freeing memory", self.lab.dead)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class Engines:
    """Builds nothing, and looks up times."""

    times: dict[str, float] = field(default_factory=lambda: dict(TIMES))
    fails: dict[str, Exception] = field(default_factory=dict)
    """What building raises."""
    run_fails: dict[str, str] = field(default_factory=dict)
    """What CUDA says to a run."""
    spoil: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = field(default_factory=dict)
    """What becomes of an output, given it and k."""
    scale: float = 0.5
    dtype: str = ""
    names: tuple[str, ...] = ("q", "k", "v")
    built: list[tuple[str, str, bool]] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    fails_after: dict[str, int] = field(default_factory=dict)
    """Steps after which a session fails."""
    breaks: dict[str, str] = field(default_factory=dict)
    """What CUDA answers to everything once an implementation has failed."""
    dead: str = ""

    def break_cuda(self, name: str) -> None:
        self.dead = self.breaks.get(name, "")

    def broken(self) -> str:
        return self.dead

    def build(self, graph: bytes, candidate: Candidate, precision: str) -> bytes:
        model = onnx.ModelProto.FromString(graph)
        assert not model.functions, "bodies stand in their nodes' places"
        onnx.checker.check_model(model, full_check=True)
        name = implementation_of(model)
        self.built.append((name, precision, candidate.kernel is not None))
        assert not self.dead, "nothing is tried once CUDA is broken"
        if name in self.fails:
            self.break_cuda(name)
            raise self.fails[name]
        return graph

    def open(self, plan: bytes) -> Session:
        model = onnx.ModelProto.FromString(plan)
        values = {info.name: info for info in (*model.graph.input, *model.graph.output)}
        shapes = {name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim) for name, info in values.items()}
        kinds = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.BFLOAT16: "uint16"}
        dtype = self.dtype or kinds[values["o"].type.tensor_type.elem_type]
        session = Session(self, implementation_of(model), dtype, shapes)
        self.sessions.append(session)
        return session


def everything(case: AttentionCase) -> list[Candidate]:
    """Candidate everything, in no order."""
    kernel = made.kernel(case.qk_channels, case.value_channels, case.dtype)
    return [*(Candidate(name=name, body=body) for name, body in BODIES.items()), Candidate(name="plugin", kernel=kernel)]


def without(**refused: str) -> Callable[[AttentionCase], list[Candidate]]:
    """Candidate everything but some, with the reasons."""
    return lambda case: [Candidate(name=o.name, refused=refused[o.name]) if o.name in refused else o for o in everything(case)]


def choose(lab: Engines, scales: tuple[float, ...] = (0.5,), dtype: str = "float16", **options: Any) -> AttentionChoice:
    model, _ = graph(scales, dtype, typed=True)
    measured: Any = Benchmarks(lab, options.pop("lean", False), rounds=ROUNDS)  # type: ignore[arg-type]
    judge = measured if options.pop("measure", True) else take_first
    return choose_attention(model, FUNCTION, options.pop("candidates", everything), judge, options.pop("status", None))


def test_the_fastest_is_taken_and_everything_is_told() -> None:
    lab, said = Engines(), list[str]()
    found = choose(lab, status=said.append)
    (choice,) = found.choices
    assert (choice.implementation, choice.plugin, choice.body) == ("plugin", "SelfAttention_d8_e64", "")
    assert choice.reason == "50.0% faster than fused" and choice.case == CASE and choice.times_ms == TIMES
    assert set(choice.parity) == set(TIMES) and choice.refused == {}
    assert all(0 < error < 1e-3 for errors in choice.parity.values() for error in errors.values())
    assert lab.built == [(name, "fp16", name == "plugin") for name in TIMES]
    assert all(session.closed for session in lab.sessions) and len(lab.sessions) == 4
    assert lab.steps[8:20] == [name for name in TIMES for _ in range(3)], "in turns, after the warm-up"
    assert found.plugins == ("SelfAttention_d8_e64",) and "attention 1 of 1: 1x1 heads, 8/64 channels" in said[0]
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["measured"] and told["choices"][0]["nodes"] == ["a0"] and told["choices"][0]["case"]["keys"] == 32
    assert [node.op_type for node in found.model.graph.node] == ["Mul", "SelfAttention_d8_e64", "Relu"]


@pytest.mark.parametrize(
    ("times", "implementation", "reason"),
    [
        ({"plugin": 1.96}, "fused", "the plugin is 2.0% faster than fused, less than the 5% asked for"),
        ({"plugin": 1.90}, "plugin", "5.0% faster than fused"),
        ({"plugin": 9.0}, "fused", "33.3% faster than decomposed"),
        ({"plugin": 2.9, "fused": 5.0}, "decomposed", "the plugin is 3.3% faster than decomposed"),
        ({"chunked": 0.5}, "chunked", "50.0% faster than plugin"),
    ],
)
def test_the_plugin_must_be_worth_it(times: dict[str, float], implementation: str, reason: str) -> None:
    found = choose(Engines(times={**TIMES, **times}))
    assert found.choices[0].implementation == implementation and reason in found.choices[0].reason
    assert implementation_of(found.model) == implementation
    assert {node.domain for node in found.model.graph.node} == ({"", "hyctas"} if implementation == "plugin" else {""})
    assert ("hyctas" in {item.domain for item in found.model.opset_import}) == (implementation == "plugin")


def test_the_chain_falls_back_with_reasons() -> None:
    failing = TensorRTFailed("building the engine", ["error: no kernel"], "take fp16")
    lab = Engines(fails={"fused": failing}, spoil={"decomposed": lambda o, _: o * 1.02})
    (choice,) = choose(lab, candidates=without(plugin="TensorRT is too old")).choices
    assert (choice.implementation, choice.reason) == ("chunked", "the only one that works here")
    assert choice.refused["plugin"] == "TensorRT is too old"
    assert choice.refused["fused"] == "building the engine failed. TensorRT: error: no kernel take fp16"
    assert choice.refused["decomposed"] == (
        "its output is wrong: relative error 2.00e-02 for varied logits, 2.00e-02 for constant logits; the limit is 1e-02"
    )
    assert choice.parity["decomposed"]["varied"] == pytest.approx(0.02, rel=0.01)
    assert all(session.closed for session in lab.sessions)


def test_what_overflows_with_equal_weights_is_not_taken() -> None:
    """As a sum of weights does in fp16: with varied logits everything is well."""
    lab = Engines(spoil={"plugin": lambda o, k: o * np.nan if np.abs(k).max() < 0.1 else o})
    (choice,) = choose(lab).choices
    assert choice.implementation == "fused" and "inf for constant logits" in choice.refused["plugin"]
    assert choice.parity["plugin"]["varied"] < 1e-3
    assert choice.to_json()["parity"]["plugin"]["constant"] == "not finite"


def test_one_wrong_block_of_queries_is_seen() -> None:
    def tail(output: np.ndarray, _: np.ndarray) -> np.ndarray:
        output[..., -1] = 0
        return output

    assert choose(Engines(spoil={"plugin": tail})).choices[0].implementation == "fused"


def test_what_fails_while_it_is_timed_is_not_taken() -> None:
    for steps in (0, 7):  # in the warm-up, and in its second turn
        lab = Engines(fails_after={"plugin": steps, "chunked": 0})
        (choice,) = choose(lab).choices
        assert choice.implementation == "fused" and set(choice.times_ms) == {"fused", "decomposed"}
        assert choice.refused["plugin"] == "launching failed: too many resources requested for launch"
        assert lab.steps.count("plugin") == steps + 1 and lab.steps.count("fused") == 14
        assert all(session.closed for session in lab.sessions)
    with pytest.raises(NoAttention, match="plugin: launching failed"):
        choose(Engines(fails_after=dict.fromkeys(TIMES, 5)))


ILLEGAL = "an illegal memory access was encountered"


@pytest.mark.parametrize("trouble", [{"run_fails": {"plugin": ILLEGAL}}, {"fails_after": {"plugin": 3}}, {}])
def test_a_kernel_that_breaks_cuda_is_named(trouble: dict[str, Any]) -> None:
    """Whether it does so while it is built, run or timed; the failures of closing what is open do not hide it."""
    trouble = trouble or {"fails": {"plugin": TensorRTFailed("building the engine", [f"error: {ILLEGAL}"])}}
    lab = Engines(breaks={"plugin": f"cudaDeviceSynchronize failed: {ILLEGAL}"}, **trouble)
    with pytest.raises(CudaBroken) as caught:
        choose(lab)
    error, text = caught.value, str(caught.value)
    assert (error.exit_code, error.case, error.implementation) == (1, CASE, "plugin")
    assert "trying the plugin SelfAttention_d8_e64 for attention of 1x1 heads" in text and "cudaDeviceSynchronize" in text
    assert text.endswith("Repeat the command without it: HYCTAS_TENSORRT_ATTENTION=fused,grouped,decomposed,chunked COMMAND")
    assert "freeing memory" not in text and all(session.closed for session in lab.sessions)


def test_what_broke_cuda_before_is_not_advised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    advised = {"fused,decomposed": f"without it: {VARIABLE}=decomposed COMMAND", "fused": f"{VARIABLE} allows nothing else"}
    for allowed, advice in advised.items():
        monkeypatch.setenv(VARIABLE, allowed)
        with pytest.raises(CudaBroken) as caught:
            choose(Engines(breaks={"fused": ILLEGAL}, run_fails={"fused": ILLEGAL}))
        assert str(caught.value).endswith(advice)


def test_lean_tries_what_it_left_out_where_nothing_else_can_be_timed() -> None:
    lab = Engines(fails_after={"plugin": 0, "fused": 3})
    (choice,) = choose(lab, lean=True).choices
    assert choice.implementation == "decomposed" and choice.refused["fused"].startswith("launching failed")
    assert set(choice.times_ms) == {"decomposed", "chunked"} and all(session.closed for session in lab.sessions)


def test_only_what_the_user_allows_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " decomposed, chunked")
    for measure in (True, False):
        lab = Engines()
        (choice,) = choose(lab, candidates=without(plugin="no kernel"), measure=measure).choices
        assert choice.implementation == "decomposed"
        assert choice.refused == {"plugin": "no kernel", "fused": f"{VARIABLE}= decomposed, chunked leaves it out"}
    monkeypatch.setenv(VARIABLE, "flash")
    with pytest.raises(InvalidInput, match=f"{VARIABLE} names flash; write one or more of fused, grouped, decomposed"):
        choose(Engines())
    monkeypatch.setenv(VARIABLE, "")
    assert choose(Engines()).choices[0].implementation == "plugin"


def test_the_lab_asks_cuda_whether_it_still_works() -> None:
    class Backend:
        def __init__(self, said: str) -> None:
            self.said = said

        def synchronize(self) -> None:
            if self.said:
                raise CudaFailed("cudaDeviceSynchronize", self.said)

    labs: list[Any] = [EngineBackend(None, None, Backend(said)) for said in ("", ILLEGAL)]  # type: ignore[arg-type]
    assert [lab.broken() for lab in labs] == ["", f"cudaDeviceSynchronize failed: {ILLEGAL}"]


def test_nothing_works() -> None:
    why = Unavailable("x", "not here", "buy one")
    lab = Engines(fails=dict.fromkeys(("fused", "decomposed"), why))
    with pytest.raises(NoAttention) as caught:
        choose(lab, candidates=without(plugin="no kernel", chunked="the whole fits"))
    error = caught.value
    assert error.exit_code == 1 and error.case == CASE and set(error.refused) == {"plugin", "chunked", "fused", "decomposed"}
    assert "Holding all its logits takes 0.00 GiB; take a smaller image" in str(error)
    big = NoAttention(replace(CASE, queries=32768, keys=32768), {})
    assert "there was no candidate" in str(big) and "takes 8.00 GiB" in str(big)
    with pytest.raises(NoAttention, match="no kernel"):
        choose(lab, measure=False, candidates=without(**dict.fromkeys(TIMES, "no kernel")))


def test_other_errors_are_not_swallowed() -> None:
    for error in (KeyboardInterrupt(), ZeroDivisionError()):
        lab = Engines(fails={"decomposed": error})  # type: ignore[dict-item]
        with pytest.raises(type(error)):
            choose(lab)
        assert all(session.closed for session in lab.sessions) and len(lab.sessions) == 1


def test_shapes_are_measured_once_and_scales_are_their_own() -> None:
    model, _ = graph((0.5, 1.0, 0.5), typed=True)
    lab = Engines()
    lab.spoil = {name: lambda o, _: o for name in TIMES}
    asked: list[float] = []

    def candidates(case: AttentionCase) -> list[Candidate]:
        asked.append(case.scale)
        lab.scale = case.scale
        return without(plugin="none")(case) if case.scale == 1.0 else everything(case)

    judge: Any = Benchmarks(lab, rounds=Rounds(warm_up=0, rounds=1, steps=2))  # type: ignore[arg-type]
    found = choose_attention(model, FUNCTION, candidates, judge)
    assert asked == [0.5, 1.0] and len(lab.built) == 7
    assert [(choice.nodes, choice.implementation) for choice in found.choices] == [(("a0", "a2"), "plugin"), (("a1",), "fused")]
    operators = [node.op_type for node in found.model.graph.node]
    assert operators.count("SelfAttention_d8_e64") == 2 and operators.count("Pad") == 3 and not found.model.functions


def test_without_measuring_the_first_is_taken() -> None:
    for candidates, implementation in ((without(fused="no", decomposed="no", chunked="no"), "plugin"), (everything, "fused")):
        lab = Engines()
        found = choose(lab, measure=False, candidates=candidates)
        assert (found.choices[0].implementation, found.choices[0].reason) == (implementation, "not measured")
        assert lab.built == [] and not found.to_json()["measured"] and found.choices[0].times_ms == {}


def test_a_graph_without_attention_is_left_as_it_is() -> None:
    model, _ = graph(())
    del model.graph.node[:], model.opset_import[1:]
    model.graph.node.append(onnx.helper.make_node("Relu", ["v"], ["y"]))
    found = choose_attention(model, FUNCTION, everything, take_first)
    assert found.choices == () and found.model == model and found.plugins == ()


@pytest.mark.parametrize("seen", ["uint16", "float32", "float16"])
def test_dtypes(seen: str) -> None:
    """bfloat16 is seen as the bits of uint16 where numpy has no name for it."""
    dtype = {"uint16": "bfloat16"}.get(seen, seen)
    lab = Engines()
    (choice,) = choose(lab, dtype=dtype).choices
    assert {session.dtype for session in lab.sessions} == {seen} and choice.implementation == "plugin"
    assert 0 <= max(choice.parity["plugin"].values()) < LIMITS[dtype] / 3


def test_engines_with_other_inputs_are_not_taken() -> None:
    with pytest.raises(NoAttention, match=r"has the inputs q, k and v; this one has \['q', 'k'\]"):
        choose(Engines(names=("q", "k")))


@pytest.mark.parametrize("values", [{}, {"body": "plain", "refused": "no"}, {"name": "magic", "body": "plain"}])
def test_offers_are_one_thing(values: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        Candidate(**{"name": "fused", **values})


@pytest.mark.parametrize("kind", ["varied", "constant"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_examples(kind: str, dtype: str) -> None:
    case = AttentionCase(2, 3, 8, 16, 1500, 70, dtype, 0.3)
    values = example(case, kind)
    q, k, v = values.inputs
    assert [array.shape for array in values.inputs] == list(case.shapes) and all((rounded(x, dtype) == x).all() for x in (q, k, v))
    full = attention(q, k, v, case.scale)
    assert values.error(full) < 1e-12 and {0, 63, 1436, 1499} <= set(values.sample) and len(values.sample) <= 1024
    logits = np.swapaxes(q, 2, 3) @ k * case.scale
    assert logits.std() == pytest.approx({"varied": 2.0, "constant": 1e-3}[kind], rel=0.1)
    full[0, 0, 0, 700] = np.nan
    assert values.error(full) == np.inf


def test_chunks_compute_the_same() -> None:
    ort = pytest.importorskip("onnxruntime")
    case = replace(CASE, dtype="float32")
    values = example(case, "varied")
    model, _ = graph((0.5,), "float32", typed=True)
    del model.graph.node[1:], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("o0", onnx.TensorProto.FLOAT, (1, 1, 64, 32)))
    for rows in (1, 12, 31, 32, 40):
        whole = attach(model, with_chunks(FUNCTION, [(32, rows)]), body_name(32, rows))
        onnx.checker.check_model(whole, full_check=True)
        session = ort.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
        (output,) = session.run(None, dict(zip("qkv", values.inputs, strict=True)))
        assert values.error(output) < 1e-6


def test_how_many_chunks() -> None:
    shapes = ((1, 1, 8, 32768), (1, 1, 8, 32768), (1, 1, 64, 32768))
    assert chunk_rows(shapes) == 4096
    assert chunk_rows(shapes, 1 << 18) == 1
    assert chunk_rows(((1, 2, 8, 100), (1, 2, 8, 64), (1, 2, 8, 64)), 2 * 64 * 8 * 40) == 34, "equal chunks"
    with pytest.raises(InvalidInput, match=f"not 1 to {MOST_CHUNKS} chunks"):
        with_chunks(FUNCTION, [(32768, 1)])
