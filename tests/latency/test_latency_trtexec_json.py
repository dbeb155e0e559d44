"""Reading trtexec's JSON: whole, torn, foreign; and giving layers to operators."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from export.trt.attribution import Layer, LayerInfo, attribute
from latency.kit import trtexec_json
from latency.kit.trtexec_json import Unusable, read_layers, read_profile, read_times

ENDS = re.compile(r"(?:k0001|k0002)_\d+_[xy]\d+")
TIMES = "[\n" + "\n, ".join(f'  {{ "startEnqMs" : {i}, "computeMs" : 0.8{i}, "latencyMs" : 0.8{i} }}' for i in range(6)) + "\n]\n"


def test_times_plain_and_packed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(f"a banner that somebody piped in\n{TIMES}")
    assert read_times(path) == [0.80, 0.81, 0.82, 0.83, 0.84, 0.85]
    path.with_name("t.json.gz").write_bytes(gzip.compress(TIMES.replace("0.80", "0.90").encode()))
    assert read_times(path)[0] == 0.90, "a packed file is the one that the script wrote last"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "torn"),
        (TIMES[:-20], "torn"),
        (TIMES.replace("0.83", "nan"), "torn"),
        (TIMES.replace("0.83", "-inf"), "torn"),
        (TIMES.replace("0.83", "NaN"), "NaN|nan"),
        (TIMES.replace("0.83", "1e999"), "computeMs is inf"),
        (TIMES.replace("0.83", "9" * 400), "computeMs is 999"),
        (TIMES.replace("0.83", "9" * 5000), "torn"),
        (TIMES.replace("0.83", "0"), "computeMs is 0;"),
        (TIMES.replace("0.83", "-1"), "computeMs is -1;"),
        (TIMES.replace("0.83", '"0.8"'), "computeMs is '0.8';"),
        (TIMES.replace("computeMs", "other"), "lacks the field `computeMs`"),
        ("[]", "holds 0 times"),
        ('[{"computeMs": 1.0}]', "fewer than"),
        ("[1, 2, 3]", "is 1; expected `object`"),
        ("[" * 100_000 + "]" * 100_000, "torn"),
    ],
)
def test_broken_times(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(Unusable, match=words):
        read_times(path)


def test_what_is_not_there_or_not_packed(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="missing"):
        read_times(tmp_path / "t.json")
    for data in (b"", b"no gzip", gzip.compress(TIMES.encode())[:-9]):
        (tmp_path / "t.json.gz").write_bytes(data)
        with pytest.raises(Unusable):
            read_times(tmp_path / "t.json")


def test_profiles(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    entry = '{ "name" : "k0001_0_n0 + k0001_0_n1", "timeMs" : 41.2, "averageMs" : 0.05, "medianMs" : 0.04, "percentage" : 63.1 }'
    path.write_text(f'[\n  {{ "count" : 1204 }}\n, {entry}\n]\n')
    assert read_profile(path) == [Layer("k0001_0_n0 + k0001_0_n1", 0.04)]
    path.write_text(f"[{entry.replace(' + ', chr(0x1F))}]")  # the separator that some releases write as it is
    assert read_profile(path) == [Layer("k0001_0_n0\x1fk0001_0_n1", 0.04)]
    path.write_text(f"[{entry.replace('0.04', 'nan')}]")
    with pytest.raises(Unusable, match="not JSON"):
        read_profile(path)
    path.write_text(f"[{entry.replace('0.04', '-3')}]")
    with pytest.raises(Unusable, match="medianMs is -3"):
        read_profile(path)
    path.write_text('[{ "count" : 3 }]')
    with pytest.raises(Unusable, match="no layer"):
        read_profile(path)
    path.write_text('[{ "name" : "say "x"", "medianMs" : 1 }]')
    with pytest.raises(Unusable, match="not JSON"):
        read_profile(path)


@pytest.mark.parametrize("bindings", [{"Bindings": ["x", "y"]}, {"I/O Tensors": [{"Name": "x"}]}, {}])
def test_layer_information_of_all_releases(tmp_path: Path, bindings: dict[str, object]) -> None:
    path = tmp_path / "l.json"
    layers = [
        {"Name": "Reformatting CopyNode for Input Tensor 0 to k0001_0_n0", "Inputs": [{"Name": "k0001_0_x0"}], "Outputs": []},
        {"Name": "Reformatting CopyNode for Input Tensor 0 to k0001_0_n2", "Inputs": [{"Name": "k0001_0_v3"}], "Outputs": None},
        {"Name": "k0001_0_n5", "Inputs": [{"Name": "k0001_0_x0"}], "Metadata": "[ONNX Layer: k0001_0_n5]"},
    ]
    path.write_text(json.dumps({"Layers": layers, **bindings}))
    for text in (path.read_text(), path.read_text().replace("[ONNX Layer: k0001_0_n5]", "[ONNX Layer: k0001_0_n5]\x1e")):
        path.write_text(text)
        info = read_layers(path, ENDS)
        assert info.conversions == {layers[0]["Name"]} and info.hints["k0001_0_n5"][0].startswith("[ONNX Layer: k0001_0_n5]")


NOTHING = ("", "{", '{"Layers": ["a", "b"]}', '{"Layers": 3}', "[]", '{"Other": []}', '{"Layers": [{"Name": 3}]}')


@pytest.mark.parametrize("text", NOTHING)
def test_layer_information_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.json").write_text(text)
    assert not read_layers(tmp_path / "l.json", ENDS).conversions
    assert read_layers(tmp_path / "none.json", ENDS) == LayerInfo()


def test_shares() -> None:
    layers = [
        Layer("k0001_0_n0 + k0001_0_n1", 2.0),
        Layer("PWN(k0001_1_n2)", 1.0),
        Layer("{ForeignNode[k0002_0_n0...k0002_0_n9]}", 4.0),
        Layer("(Unnamed Layer* 7) [Shuffle]", 0.5),
        Layer("k0001_0_n7 || k0002_0_n3", 0.5),
        Layer("Reformatting CopyNode for Output Tensor 0 to k0001_0_n1", 2.0),
    ]
    info = LayerInfo(frozenset({layers[-1].name}))
    shares = attribute(layers, ["k0001", "k0002"], info)
    assert (shares.shared, shares.conversions) == (pytest.approx(0.1), pytest.approx(0.2))
    assert shares.of == {"k0001": pytest.approx(0.3 * 8 / 7), "k0002": pytest.approx(0.4 * 8 / 7)}
    assert sum(shares.of.values()) + shares.conversions == pytest.approx(1)
    # metadata beats a name that lists only the first and the last node of a region; tensors decide where nothing else tells
    metadata = "[ONNX Layer: k0001_0_n4][ONNX Layer: k0002_0_n0]"
    hints = {layers[2].name: (metadata, ""), layers[3].name: ("", "k0002_0_v1 k0002_0_v2")}
    shares = attribute(layers, ["k0001", "k0002"], LayerInfo(frozenset(), hints))
    assert shares.shared == pytest.approx(0.45)
    alone = attribute(layers, ["k0001"], info)
    assert alone.of == {"k0001": pytest.approx(0.8)} and alone.shared == 0, "a file of one operator has no strangers"
    nobody = attribute([Layer("k0001_0_n0", 1.0)], ["k0001", "k0002"], LayerInfo())
    assert nobody.of["k0002"] == 0
    assert attribute([Layer("k0009_0_n0 mark0001_0_n0", 1.0)], ["k0001", "k0002"], LayerInfo()).shared == 1


@pytest.mark.parametrize("packed", [True, False])
def test_a_result_does_not_grow_without_bound(tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of spaces are 64 KiB as gzip; unpacked whole, 3 MB took 3 GB."""
    monkeypatch.setattr(trtexec_json, "LARGEST", 2**20)
    text = b"[" + b" " * 2**21 + b"]"
    (tmp_path / ("a.json.gz" if packed else "a.json")).write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(Unusable, match="more than 1 MiB"):
        trtexec_json.read_text(tmp_path / "a.json")
