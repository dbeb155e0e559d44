"""A stand-in for trtexec: the real one's options, messages, files and exit codes (8.6, 10.x, 11.x), invented times.

Run by tests as a program. Behaviour comes from the environment:

    FAKE_VERSION      8601, 100300, 101600, 110000 (as in the banner)
    FAKE_GPU          name of the device
    FAKE_STATE        folder for what happens once only, and for calls.txt, one line per call
    FAKE_FAIL         comma-separated: oom, oom-once, unsupported, slow-build, crash-cache, no-passed, nan, torn, empty, no-device,
                      kill, no-profile, unattributable, shared, conversions, myelin, no-graph, plan-once, hang
    FAKE_ONLY         the failure hits only models whose file name contains this
    FAKE_DRIFT        factor on the times from the n-th timing on, "n:factor"
    FAKE_SECONDS      seconds that a build takes
    FAKE_MODELS       folder of what `kit_device.describe` found in the kit's models: this program starts without onnx
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

VERSION = int(os.environ.get("FAKE_VERSION", "100300"))
FAIL = set(filter(None, os.environ.get("FAKE_FAIL", "").split(",")))
PROFILE_FACTOR = 1.17  # a profile takes longer than the same work without
ALL = """
onnx saveEngine loadEngine noTF32 memPoolSize timingCacheFile noBuilderCache builderOptimizationLevel avgTiming maxAuxStreams
skipInference profilingVerbosity inputIOFormats outputIOFormats device warmUp duration iterations avgRuns percentile useCudaGraph
noDataTransfers useSpinWait separateProfileRun exportTimes exportOutput exportProfile exportLayerInfo dumpProfile infStreams verbose
loadInputs""".split()
VALUED = """
onnx saveEngine loadEngine memPoolSize timingCacheFile builderOptimizationLevel avgTiming maxAuxStreams profilingVerbosity
inputIOFormats outputIOFormats device warmUp duration iterations avgRuns percentile exportTimes exportOutput exportProfile
exportLayerInfo infStreams loadInputs""".split()


def known() -> list[str]:
    """List this release's options."""
    options = list(ALL)
    if VERSION < 110000:
        options += ["fp16", "best"]
    if VERSION < 100000:
        options += ["workspace", "minTiming", "buildOnly", "explicitBatch"]
    if VERSION >= 100000:
        options += ["stronglyTyped", "errorOnTimingCacheMiss", "getPlanVersionOnly"]
    if 100000 <= VERSION < 110000:
        options += ["bf16"]
    if VERSION >= 101600:
        options += ["maxTactics", "monitorMemory"]
    if VERSION >= 110000:
        options += ["includeDataTransfers", "noCudaGraph", "noSpinWait"]
    return options


def info(text: str) -> None:
    print(f"[11/22/2026-10:00:00] [I] {text}", flush=True)


def error(text: str) -> None:
    print(f"[11/22/2026-10:00:00] [E] {text}", file=sys.stderr, flush=True)


def banner(word: str) -> None:
    build = " [b26]" if VERSION >= 100400 else ""
    print(f"&&&& {word} TensorRT.trtexec [TensorRT v{VERSION}]{build} # trtexec {' '.join(sys.argv[1:])}", flush=True)


def show_help() -> None:
    print("=== Model Options ===")
    for name in known():
        value = "=<value>" if name in VALUED else ""
        print(f"  --{name}{value}          Something about it (see also --fp16 and --includeDataTransfers)")


def failed(*texts: str, code: int = 1) -> None:
    for text in texts:
        error(text)
    banner("FAILED")
    sys.exit(code)


def parse() -> dict[str, str]:
    """Read `--name=value`; anything else is refused as the real program refuses it."""
    found: dict[str, str] = {}
    unknown: list[str] = []
    for argument in sys.argv[1:]:
        match = re.fullmatch(r"--(\w+)(?:=(.*))?", argument)
        if match is None or match[1] not in known() or match[1] in found or (match[2] is None) == (match[1] in VALUED):
            unknown.append(argument)
        else:
            found[match[1]] = match[2] or ""
    if unknown:
        show_help()
        for argument in unknown:
            error(f"Unknown option: {argument} ")
        if VERSION < 110000:
            banner("FAILED")
        sys.exit(1)
    return found


def look(path: Path) -> dict[str, object]:
    """Return what `kit_device.describe` found in a model."""
    known = Path(os.environ["FAKE_MODELS"]) / f"{hashlib.sha256(path.read_bytes()).hexdigest()}.json"
    found: dict[str, object] = json.loads(known.read_text())
    return found


def once(name: str) -> bool:
    """Say whether this is the first time."""
    path = Path(os.environ["FAKE_STATE"]) / name
    if path.exists():
        return False
    path.write_text("")
    return True


def device() -> None:
    if "no-device" in FAIL:
        error("Cannot find any available devices (GPUs)!")
        sys.exit(1)
    info("=== Device Information ===")
    info(f"Selected Device: {os.environ.get('FAKE_GPU', 'Orin')}")
    info("Compute Capability: 8.7")
    info("Device Global Memory: 7620 MiB")
    info(f"TensorRT version: {VERSION // 10000}.{VERSION // 100 % 100}.{VERSION % 100}")


def build(options: dict[str, str], fail: set[str]) -> None:
    for name in ("skipInference", "saveEngine"):
        assert name in options, f"a build for a kit has {name}"
    model = look(Path(options["onnx"]))
    half = model["half"]
    if half and "fp16" not in options and VERSION < 100000:
        failed("Network has half tensors, but --fp16 is not set", "Engine set up failed")
    if half and VERSION >= 100000 and VERSION < 110000 and not {"stronglyTyped", "fp16"} & set(options):
        failed("Network has half tensors, but the builder may not use them", "Engine set up failed")
    if "stronglyTyped" in options and "fp16" in options:
        error("weak flags are ignored")
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    level, workspace = int(options.get("builderOptimizationLevel", 3)), int(options["memPoolSize"].removeprefix("workspace:"))
    if "oom" in fail or ("oom-once" in fail and workspace > 256):
        print("[11/22/2026-10:00:00] [W] [TRT] Tactic Device request: 600MB Available: 302MB. Device memory is insufficient",
              file=sys.stderr, flush=True)  # fmt: skip
        os.kill(os.getpid(), signal.SIGKILL)
    if "unsupported" in fail:
        failed("[TRT] ModelImporter.cpp:771: No importer registered for op: X", "Failed to parse onnx file", "Engine set up failed")
    if "slow-build" in fail and level > 1:
        time.sleep(30)
    cache = Path(options["timingCacheFile"])
    if "crash-cache" in fail and cache.exists() and b"bad" in cache.read_bytes():
        os.kill(os.getpid(), signal.SIGSEGV)
    cache.write_text("cache")
    Path(f"{cache}.lock").write_text("")
    plan = {**model, "version": VERSION, "file": Path(options["onnx"]).name}
    Path(options["saveEngine"]).write_text(json.dumps(plan))
    info("Engine built in 0.1 sec.")


def timings(options: dict[str, str], plan: dict[str, object], fail: set[str]) -> None:
    layers = plan["layers"]
    assert isinstance(layers, dict)
    graph = VERSION >= 110000 or "useCudaGraph" in options
    copies = 0.0 if VERSION >= 110000 or "noDataTransfers" in options else 0.5
    ms = sum(layers.values()) + copies + (0.0 if graph else 0.004 * len(layers))
    calls = Path(os.environ["FAKE_STATE"]) / "timings.txt"
    count = len(calls.read_text()) if calls.exists() else 0
    calls.write_text("." * (count + 1))
    start, _, factor = os.environ.get("FAKE_DRIFT", "1000000:1").partition(":")
    ms *= float(factor) if count >= int(start) else 1.0
    if "no-graph" in fail:
        print("[W] operations that are not permitted under CUDA graph capture mode", file=sys.stderr, flush=True)
    if "hang" in fail:
        time.sleep(60)
    path = Path(options["exportTimes"])
    n = max(int(options.get("iterations", 10)), 20)
    rows = []
    for i in range(n):
        value = f"{ms * (1 + 0.004 * ((i * 7) % 11 - 5) / 5):.6g}"
        if "nan" in fail and i == 3:
            value = "nan"
        rows.append(f'  {{ "startEnqMs" : {i}, "endEnqMs" : {i}, "startComputeMs" : {i}, "endComputeMs" : {i + 0.83:.4g}, '
                    f'"h2dMs" : 0, "computeMs" : {value}, "d2hMs" : 0, "latencyMs" : {value} }}')  # fmt: skip
    text = "[\n" + "\n, ".join(rows) + "\n]\n"
    if "kill" in fail:
        path.write_text(text[: len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    if "empty" not in fail:
        path.write_text(text[: len(text) // 2] if "torn" in fail else text)
    info(f"Throughput: {1000 / ms:.4g} qps")
    info(f"GPU Compute Time: min = {ms:.6g} ms, max = {ms:.6g} ms, mean = 1 ms, median = {ms:.6g} ms, percentile(90%) = 1 ms")
    info(f"Total GPU Compute Time: {n * ms / 1000:.4g} s")


def profile(options: dict[str, str], plan: dict[str, object], fail: set[str]) -> None:
    if "no-profile" in fail:
        return
    layers = plan["layers"]
    assert isinstance(layers, dict)
    shown = {name: ms * PROFILE_FACTOR for name, ms in layers.items()}
    details = [{"Name": name, "LayerType": "X", "Inputs": [], "Outputs": []} for name in shown]
    whole = sum(shown.values())
    if "conversions" in fail:  # 20 % on top, spent on layouts at the ends
        for end in plan["ends"]:  # type: ignore[attr-defined]
            name = f"Reformatting CopyNode for Input Tensor 0 to {end.rsplit('_', 1)[0]}_n0 ({end})"
            shown[name] = 0.2 * whole / len(plan["ends"])  # type: ignore[arg-type]
            details.append({"Name": name, "LayerType": "Reformat", "Inputs": [{"Name": end}], "Outputs": [{"Name": "z"}]})
    if "myelin" in fail:  # fused kernels have names of their own; the nodes they come from stand in the layer information
        shown = {f"__myl_Fused_myl0_{number}": ms for number, ms in enumerate(shown.values())}
        nodes = ["\u001e".join(f"[ONNX Layer: {node}]" for node in old.split(" + ")) for old in layers]
        details = [{"Name": name, "LayerType": "kgen", "Metadata": text} for name, text in zip(shown, nodes, strict=True)]
    if "shared" in fail:
        shown["(Unnamed Layer* 7) [Shuffle]"] = 0.05 * whole
        first, *_, last = layers
        shown[f"{{ForeignNode[{first}...{last}]}}"] = 0.05 * whole
    if "unattributable" in fail:
        shown["{ForeignNode[all]}"] = whole
    total = sum(shown.values())
    lines = [f'  {{ "name" : "{name}", "timeMs" : {ms * 100:.6g}, "averageMs" : {ms:.6g}, "medianMs" : {ms:.6g}, '
             f'"percentage" : {100 * ms / total:.4g} }}' for name, ms in shown.items()]  # fmt: skip
    Path(options["exportProfile"]).write_text("[\n" + "\n, ".join(['  { "count" : 100 }', *lines]) + "\n]\n")
    bindings = "I/O Tensors" if VERSION >= 110000 else "Bindings"
    Path(options["exportLayerInfo"]).write_text(json.dumps({"Layers": details, bindings: []}))


def main() -> None:
    with open(Path(os.environ["FAKE_STATE"]) / "calls.txt", "a") as handle:
        handle.write(" ".join(sys.argv[1:]) + "\n")
    banner("RUNNING")
    if len(sys.argv) == 1 or sys.argv[1] in ("--help", "-h"):
        show_help()
        return
    options = parse()
    device()
    source = options.get("onnx") or options["loadEngine"]
    fail = FAIL if os.environ.get("FAKE_ONLY", "") in Path(source).name else set()
    if "onnx" in options:
        build(options, fail)
    else:
        plan = json.loads(Path(options["loadEngine"]).read_text())
        if plan["version"] != VERSION or ("plan-once" in fail and once("plan")):
            failed("[TRT] Serialization assertion failed: version mismatch", "Engine deserialization failed")
        profiling = "exportProfile" in options
        if profiling and VERSION < 110000:
            assert "separateProfileRun" in options, "the profile would be the timing run"
        if "exportTimes" in options and not profiling:
            timings(options, plan, fail)
        if profiling:
            profile(options, plan, fail)
    if "no-passed" in fail:
        return
    banner("PASSED")


if __name__ == "__main__":
    main()
