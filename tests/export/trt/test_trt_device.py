"""One contract for all backends of `export.trt.cuda.device`, over fakes of the packages that they talk to.

`test_on_a_gpu` runs those for real that are installed, where there is a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from export.errors import InvalidInput, Unavailable
from export.platform import nvidia_driver
from export.trt.cuda import device_cuda_bindings, device_pycuda, device_torch
from export.trt.cuda.device import BACKENDS, CudaFailed, DeviceBackend, open_backend
from tests.export.trt.fakes_cuda import fake_cuda_bindings, fake_pycuda, fake_torch, module
from tests.export.trt.fakes_gpu import OUT_OF_MEMORY, FakeGpu

MAKERS: dict[str, Callable[[FakeGpu], DeviceBackend]] = {
    "torch": lambda gpu: device_torch.TorchBackend(fake_torch(gpu)),
    "cuda-bindings": lambda gpu: device_cuda_bindings.CudaBindingsBackend(fake_cuda_bindings(gpu)),
    "pycuda": lambda gpu: device_pycuda.PycudaBackend(fake_pycuda(gpu)),
}
DATA = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def install(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType | str) -> None:
    """Make modules importable; a name stands for a module that cannot be imported."""
    for made in modules:
        monkeypatch.setitem(sys.modules, made if isinstance(made, str) else made.__name__, None if isinstance(made, str) else made)


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def backend(name: str, gpu: FakeGpu) -> DeviceBackend:
    return MAKERS[name](gpu)


@pytest.mark.parametrize("name", BACKENDS)
class TestContract:
    def test_copies_are_complete_on_return(self, backend: DeviceBackend, gpu: FakeGpu) -> None:
        stream, memory = backend.make_stream(), backend.allocate(DATA.nbytes)
        assert backend.number(stream) in gpu.queues and backend.number(memory) in gpu.memory
        fixed = DATA.copy()
        fixed.flags.writeable = False
        for array in (DATA.copy(), fixed, DATA.copy()[::-1], DATA.astype(np.int32), np.full((), 7, "<U24")):
            wanted = array.copy()
            backend.upload(memory, array, stream)
            if array.flags.writeable:
                array[...] = array.dtype.type(1)
            np.testing.assert_array_equal(backend.download(memory, wanted.shape, wanted.dtype, stream), wanted)
        backend.upload(memory, DATA, stream)
        backend.fill(memory, 8, stream)
        after = backend.download(memory, (96,), np.dtype(np.uint8), stream)
        assert not after[:8].any() and after[8:].any()

    def test_events(self, backend: DeviceBackend, gpu: FakeGpu) -> None:
        stream, first, last = backend.make_stream(), backend.make_event(), backend.make_event()
        for ms in (2.5, 0.75):
            backend.record(first, stream)
            gpu.enqueue(backend.number(stream), lambda: None, ms)
            backend.record(last, stream)
            backend.wait(last)
            assert backend.elapsed_ms(first, last) == pytest.approx(ms)

    def test_everything_is_freed(self, backend: DeviceBackend, gpu: FakeGpu) -> None:
        made = [backend.make_stream(), backend.make_event(), backend.allocate(8)]
        made += [] if backend.why_no_graphs else [backend.capture(made[0], lambda: None)]
        while made:
            backend.free(made.pop())
        assert gpu.leaks() == []

    @pytest.mark.parametrize("call", "allocate make_stream make_event upload download fill record wait_stream".split())
    def test_errors_carry_cudas_words(self, backend: DeviceBackend, gpu: FakeGpu, call: str) -> None:
        stream, memory, event = backend.make_stream(), backend.allocate(8), backend.make_event()
        uses: dict[str, Callable[[], object]] = {
            "allocate": lambda: backend.allocate(8), "make_stream": backend.make_stream, "make_event": backend.make_event,
            "upload": lambda: backend.upload(memory, np.zeros(8, np.uint8), stream),
            "fill": lambda: backend.fill(memory, 8, stream),
            "download": lambda: backend.download(memory, (8,), np.dtype(np.uint8), stream),
            "record": lambda: backend.record(event, stream), "wait_stream": lambda: backend.wait(stream),
        }  # fmt: skip
        gpu.fail[call] = (OUT_OF_MEMORY, "out of memory")
        with pytest.raises(CudaFailed, match="out of memory"):
            uses[call]()

    def test_versions(self, backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        install(monkeypatch, module("pycuda", VERSION_TEXT="2026.1"))
        assert backend.name == name
        assert "12.8" in " ".join(backend.versions().values())


@pytest.mark.parametrize("name", ["torch", "cuda-bindings"])
class TestGraphs:
    """What the contract says of CUDA graphs, for the backends that have them."""

    def test_graphs(self, backend: DeviceBackend, gpu: FakeGpu) -> None:
        done: list[int] = []
        stream = backend.make_stream()
        graph = backend.capture(stream, lambda: gpu.enqueue(backend.number(stream), lambda: done.append(1), 1.0))
        backend.wait(stream)
        assert done == [], "a capture does nothing"
        backend.launch(graph, stream)
        backend.launch(graph, stream)
        backend.wait(stream)
        assert done == [1, 1]

    def test_a_capture_that_breaks(self, backend: DeviceBackend, gpu: FakeGpu) -> None:
        stream = backend.make_stream()
        with pytest.raises(CudaFailed, match="previous error during capture"):
            backend.capture(stream, lambda: gpu.queues[backend.number(stream)].__setattr__("broken", True))
        with pytest.raises(CudaFailed, match="not permitted when stream is capturing"):
            backend.capture(stream, lambda: backend.allocate(4))
        with pytest.raises(ZeroDivisionError):
            backend.capture(stream, lambda: 1 / 0)
        backend.launch(backend.capture(stream, lambda: None), stream)

    @pytest.mark.parametrize("call", ["begin_capture", "end_capture", "launch"])
    def test_errors_carry_cudas_words(self, backend: DeviceBackend, gpu: FakeGpu, call: str) -> None:
        stream = backend.make_stream()
        gpu.fail[call] = (OUT_OF_MEMORY, "out of memory")
        with pytest.raises(CudaFailed, match="out of memory"):
            backend.launch(backend.capture(stream, lambda: None), stream)
        del gpu.fail[call]
        backend.launch(backend.capture(stream, lambda: None), stream)


def test_memory_that_torch_hands_on_is_not_written_by_others(gpu: FakeGpu) -> None:
    done: list[int] = []
    gpu.enqueue(0, lambda: done.append(1))  # of the stream that used the memory before
    MAKERS["torch"](gpu).allocate(4)
    assert done == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_on_a_gpu(name: str) -> None:
    try:
        backend = open_backend(name)
    except Unavailable as error:
        pytest.skip(str(error))
    stream, memory, first, last = backend.make_stream(), backend.allocate(DATA.nbytes), backend.make_event(), backend.make_event()
    made = [stream, memory, first, last]
    backend.upload(memory, DATA, stream)
    np.testing.assert_array_equal(backend.download(memory, DATA.shape, DATA.dtype, stream), DATA)
    backend.record(first, stream)
    if not backend.why_no_graphs:
        made.append(backend.capture(stream, lambda: backend.fill(memory, DATA.nbytes, stream)))
        np.testing.assert_array_equal(backend.download(memory, DATA.shape, DATA.dtype, stream), DATA)
        backend.launch(made[-1], stream)
    else:
        backend.fill(memory, DATA.nbytes, stream)
    backend.record(last, stream)
    backend.wait(last)
    assert 0 < backend.elapsed_ms(first, last) < 1000
    assert not backend.download(memory, DATA.shape, DATA.dtype, stream).any()
    while made:
        backend.free(made.pop())
    assert all(backend.versions().values())


def test_cuda_bindings_names_the_call_and_the_number(gpu: FakeGpu) -> None:
    gpu.fail["allocate"] = (OUT_OF_MEMORY, "out of memory")
    with pytest.raises(CudaFailed, match="cudaMalloc failed: error 2, out of memory") as caught:
        MAKERS["cuda-bindings"](gpu).allocate(4)
    assert (caught.value.what, caught.value.said) == ("cudaMalloc", "error 2, out of memory")


def test_cuda_bindings_may_raise_instead(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(number: int) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # 12.8

    runtime = fake_cuda_bindings(gpu)
    monkeypatch.setattr(runtime, "cudaSetDevice", raising)
    install(monkeypatch, "torch", module("cuda"), module("cuda.bindings"), runtime, "pycuda.driver")
    with pytest.raises(Unavailable, match=r"cuda-bindings: .*cudaSetDevice failed: Failed to dlopen libcuda\.so\.1; pycuda: "):
        open_backend()


def test_real_cuda_bindings_take_what_we_pass() -> None:
    """Where there is no driver every call comes as far as CUDA, which refuses it; what we pass wrongly raises before."""
    if nvidia_driver():
        pytest.skip("there is a driver: test_on_a_gpu makes these calls for real")
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed (pip install cuda-bindings)")
    backend = object.__new__(device_cuda_bindings.CudaBindingsBackend)
    with pytest.raises(CudaFailed):
        backend.__init__(runtime)  # type: ignore[misc]
    Item, data = device_cuda_bindings.Item, np.zeros(8, np.uint8)
    memory, graph = Item(0x7F0000000000, "cudaFree"), Item(runtime.cudaGraphExec_t(0x7000), "cudaGraphExecDestroy")
    stream = Item(runtime.cudaStream_t(0x5000), "cudaStreamDestroy", "cudaStreamSynchronize")
    event = Item(runtime.cudaEvent_t(0x6000), "cudaEventDestroy", "cudaEventSynchronize")
    calls: list[Callable[[], object]] = [
        lambda: backend.allocate(8), backend.make_stream, backend.make_event, backend.synchronize,
        lambda: backend.copy_in(memory, data, stream), lambda: backend.copy_out(memory, data, stream),
        lambda: backend.fill(memory, 8, stream), lambda: backend.record(event, stream), lambda: backend.elapsed_ms(event, event),
        lambda: backend.wait(stream), lambda: backend.wait(event), lambda: backend.begin_capture(stream),
        lambda: backend.end_capture(stream), lambda: backend.launch(graph, stream),
        lambda: backend._call("cudaGraphInstantiate", runtime.cudaGraph_t(0x8000), 0),
        lambda: backend._call("cudaGraphDestroy", runtime.cudaGraph_t(0x8000)),
        *(lambda item=item: backend.free(item) for item in (memory, event, graph, stream)),  # type: ignore[misc]
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(CudaFailed):
            call()
    assert backend.number(stream) == 0x5000, "TensorRT gets a stream as a number"
    assert set(backend.versions()) == {"cuda_bindings", "cuda_runtime"}


def test_pycuda_has_no_graphs_and_says_so(gpu: FakeGpu) -> None:
    backend = MAKERS["pycuda"](gpu)
    with pytest.raises(CudaFailed, match=r"capturing a CUDA graph failed: pycuda has none"):
        backend.capture(backend.make_stream(), lambda: None)


class TestOpening:
    """`open_backend`: which one, and why not."""

    @pytest.fixture
    def everything(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
        driver = fake_pycuda(gpu)
        install(monkeypatch, fake_torch(gpu), module("cuda"), module("cuda.bindings"), fake_cuda_bindings(gpu))
        install(monkeypatch, module("pycuda"), driver, module("pycuda.autoprimaryctx", device="GPU 0"))

    @pytest.mark.usefixtures("everything")
    def test_the_first_that_works(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
        assert [open_backend().name, *(open_backend(name).name for name in BACKENDS)] == ["torch", *BACKENDS]
        install(monkeypatch, fake_torch(gpu, available=False))
        assert open_backend().name == "cuda-bindings"
        install(monkeypatch, "torch")
        assert open_backend().name == "cuda-bindings"
        gpu.fail["set_device"] = (35, "CUDA driver version is insufficient for CUDA runtime version")
        assert open_backend().name == "pycuda"

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "torch", "cuda.bindings.runtime", "pycuda.driver")
        with pytest.raises(Unavailable) as caught:
            open_backend()
        assert caught.value.exit_code == 3
        assert caught.value.install.startswith("pip install 'cuda-bindings=="), "what TensorRT needs is another matter"
        for name in BACKENDS:
            assert f"{name}: " in caught.value.reason
            with pytest.raises(Unavailable, match=f"the CUDA backend {name} is unavailable: .* cannot be imported") as by_name:
                open_backend(name)
            assert name.split("-")[0] in by_name.value.install.lower()

    @pytest.mark.usefixtures("everything")
    def test_a_cuda_that_does_not_start(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
        gpu.fail["set_device"] = (100, "no CUDA-capable device is detected")
        with pytest.raises(Unavailable, match="cudaSetDevice failed: error 100, no CUDA-capable device"):
            open_backend("cuda-bindings")
        install(monkeypatch, fake_torch(gpu, available=False))
        with pytest.raises(Unavailable, match=r"PyTorch 2\.11\.0 finds no CUDA device"):
            open_backend("torch")

    @pytest.mark.usefixtures("everything")
    @pytest.mark.parametrize(("number", "taken"), [("2.5.0a0+872d972e41.nv24.08", False), ("2.6.0", False), ("2.7.0", True)])
    def test_old_torch_is_refused(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu, number: str, taken: bool) -> None:
        install(monkeypatch, fake_torch(gpu, number=number))
        assert open_backend().name == ("torch" if taken else "cuda-bindings")
        if not taken:
            with pytest.raises(Unavailable, match="adds two kernels to every CUDA graph, so times would be wrong"):
                open_backend("torch")

    @pytest.mark.usefixtures("everything")
    def test_contexts_that_pycuda_must_not_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, module("pycuda.autoprimaryctx", device="GPU 1"))
        with pytest.raises(Unavailable, match="pycuda chose another GPU than the first"):
            open_backend("pycuda")
        install(monkeypatch, module("pycuda.autoinit"))
        with pytest.raises(Unavailable, match=r"pycuda\.autoinit was imported"):
            open_backend("pycuda")

    @pytest.mark.usefixtures("everything")
    def test_pycuda_that_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(name: str) -> ModuleType:
            if name == "pycuda.autoprimaryctx":
                raise ValueError("invalid literal for int() with base 10: 'all'")  # CUDA_DEVICE=all
            return sys.modules[name]

        monkeypatch.setattr(device_pycuda.importlib, "import_module", start)
        with pytest.raises(Unavailable, match=r"CUDA does not start \(invalid literal"):
            device_pycuda.open_backend()

    def test_an_unknown_name(self) -> None:
        with pytest.raises(InvalidInput, match="unknown CUDA backend 'cupy'; write one of torch, cuda-bindings, pycuda"):
            open_backend("cupy")
