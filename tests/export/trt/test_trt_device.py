"""One contract for all backends of `export.trt.device`, over fakes of the packages that they talk to.

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
from export.trt import device_cuda_bindings, device_pycuda, device_torch
from export.trt.device import BACKENDS, CudaFailed, Device, DeviceBackend, Misused, open_backend
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


@pytest.mark.parametrize("name", BACKENDS)
class TestContract:
    @pytest.fixture
    def device(self, name: str, gpu: FakeGpu) -> Device:
        return Device(MAKERS[name](gpu))

    def test_round_trip(self, device: Device, gpu: FakeGpu) -> None:
        with device:
            stream, memory = device.stream(), device.allocate(DATA.nbytes)
            assert stream.handle in gpu.queues and memory.address in gpu.memory
            for array in (DATA, DATA[::-1], DATA.astype(np.int32), np.full((), 7, "<U24")):
                device.upload(memory, array, stream)
                np.testing.assert_array_equal(device.download(memory, array.shape, array.dtype, stream), array)
        assert gpu.leaks() == []

    def test_read_only_arrays(self, device: Device) -> None:
        fixed = DATA.copy()
        fixed.flags.writeable = False
        with device:
            stream, memory = device.stream(), device.allocate(DATA.nbytes)
            device.upload(memory, fixed, stream)
            np.testing.assert_array_equal(device.download(memory, DATA.shape, DATA.dtype, stream), DATA)

    def test_an_upload_is_complete_on_return(self, device: Device) -> None:
        with device:
            stream, memory = device.stream(), device.allocate(DATA.nbytes)
            array = DATA.copy()
            device.upload(memory, array, stream)
            array[:] = -1
            np.testing.assert_array_equal(device.download(memory, DATA.shape, DATA.dtype, stream), DATA)

    def test_fill(self, device: Device) -> None:
        with device:
            stream, memory = device.stream(), device.allocate(8)
            device.upload(memory, np.ones(8, np.uint8), stream)
            device.fill(memory, stream)
            assert not device.download(memory, (8,), np.dtype(np.uint8), stream).any()

    def test_events(self, device: Device, gpu: FakeGpu) -> None:
        with device:
            stream = device.stream()
            first, last = device.event(), device.event()
            for ms in (2.5, 0.75):
                device.record(first, stream)
                gpu.enqueue(stream.handle, lambda: None, ms)
                device.record(last, stream)
                device.wait(last)
                assert device.elapsed_ms(first, last) == pytest.approx(ms)
        assert gpu.leaks() == []

    def test_freeing_one(self, device: Device, gpu: FakeGpu) -> None:
        with device:
            memory = device.allocate(8)
            device.free(memory)
            assert gpu.leaks() == []
            with pytest.raises(Misused, match="this memory was freed"):
                device.free(memory)

    def test_use_after_close(self, device: Device) -> None:
        stream, memory, event = device.stream(), device.allocate(8), device.event()
        device.close()
        device.close()
        calls: list[Callable[[], object]] = [
            lambda: device.upload(memory, np.zeros(8, np.uint8), stream),
            lambda: device.download(memory, (8,), np.dtype(np.uint8), stream),
            lambda: device.fill(memory, stream),
            lambda: device.record(event, stream),
            lambda: device.wait(stream),
            lambda: device.capture(stream, lambda: None),
        ]
        for call in calls:
            with pytest.raises(Misused, match="was freed"):
                call()

    def test_objects_of_another_device(self, device: Device, name: str, gpu: FakeGpu) -> None:
        with device, Device(MAKERS[name](gpu)) as other:
            with pytest.raises(Misused, match="belongs to another device"):
                device.wait(other.stream())

    def test_sizes(self, device: Device) -> None:
        with device:
            stream, memory = device.stream(), device.allocate(8)
            with pytest.raises(Misused, match="upload: the array has 9 bytes, the device memory 8"):
                device.upload(memory, np.zeros(9, np.uint8), stream)
            with pytest.raises(Misused, match="download: the array has 4 bytes"):
                device.download(memory, (1,), np.dtype(np.float32), stream)
            with pytest.raises(Misused, match="at least 1 byte, got 0"):
                device.allocate(0)

    def test_times_before_they_are_known(self, device: Device) -> None:
        with device:
            stream, first, last = device.stream(), device.event(), device.event()
            with pytest.raises(Misused, match="never recorded"):
                device.wait(last)
            device.record(first, stream)
            device.record(last, stream)
            with pytest.raises(Misused, match="recorded and recorded"):
                device.elapsed_ms(first, last)
            device.wait(last)
            device.elapsed_ms(first, last)
            device.record(last, stream)
            with pytest.raises(Misused, match="they are recorded and recorded"):
                device.elapsed_ms(first, last)

    def test_a_capture_of_the_default_stream(self, device: Device, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu, "make_stream", lambda: 0)
        with device, pytest.raises(Misused, match=r"default stream \(0\), which cannot be captured"):
            device.stream()

    @pytest.mark.parametrize(
        ("call", "use"),
        [
            ("allocate", lambda device, stream, memory: device.allocate(8)),
            ("make_stream", lambda device, stream, memory: device.stream()),
            ("make_event", lambda device, stream, memory: device.event()),
            ("upload", lambda device, stream, memory: device.upload(memory, np.zeros(8, np.uint8), stream)),
            ("download", lambda device, stream, memory: device.download(memory, (8,), np.dtype(np.uint8), stream)),
            ("fill", lambda device, stream, memory: device.fill(memory, stream)),
            ("record", lambda device, stream, memory: device.record(device.event(), stream)),
            ("wait_stream", lambda device, stream, memory: device.wait(stream)),
        ],
    )
    def test_errors_carry_cudas_words(
        self, device: Device, gpu: FakeGpu, call: str, use: Callable[[Device, object, object], object]
    ) -> None:
        with device:
            stream, memory = device.stream(), device.allocate(8)
            gpu.fail[call] = (OUT_OF_MEMORY, "out of memory")
            with pytest.raises(CudaFailed, match="out of memory"):
                use(device, stream, memory)
            del gpu.fail[call]

    def test_closing_frees_all_even_after_a_failure(self, device: Device, gpu: FakeGpu, name: str) -> None:
        device.stream()
        device.allocate(8)
        device.event()
        gpu.fail["synchronize"] = (700, "an illegal memory access was encountered")
        with pytest.raises(CudaFailed, match="illegal memory access"):
            device.close()
        assert gpu.leaks() == []

    def test_versions(self, device: Device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        install(monkeypatch, module("pycuda", VERSION_TEXT="2026.1"))
        assert device.backend.name == name
        found = device.backend.versions()
        assert all(isinstance(value, str) for value in found.values())
        assert "12.8" in " ".join(found.values())


@pytest.mark.parametrize("name", ["torch", "cuda-bindings"])
class TestGraphs:
    """What the contract says of CUDA graphs, for the backends that have them."""

    @pytest.fixture
    def device(self, name: str, gpu: FakeGpu) -> Device:
        return Device(MAKERS[name](gpu))

    def test_graphs(self, device: Device, gpu: FakeGpu) -> None:
        done: list[int] = []
        with device:
            stream = device.stream()
            graph = device.capture(stream, lambda: gpu.enqueue(stream.handle, lambda: done.append(1), 1.0))
            device.wait(stream)
            assert done == [], "a capture does nothing"
            device.launch(graph)
            device.launch(graph)
            assert done == [], "nobody waited"
            device.wait(stream)
            assert done == [1, 1]
        assert gpu.leaks() == []

    def test_what_a_capture_forbids(self, device: Device, gpu: FakeGpu) -> None:
        with device:
            stream, memory, event = device.stream(), device.allocate(4), device.event()
            graph = device.capture(stream, lambda: None)
            forbidden: list[Callable[[], object]] = [
                lambda: device.upload(memory, np.zeros(4, np.uint8), stream),
                lambda: device.wait(stream),
                lambda: device.record(event, stream),
                lambda: device.launch(graph),
                lambda: device.capture(stream, lambda: None),
            ]
            for call in forbidden:
                with pytest.raises(Misused, match="a stream while it is captured"):
                    device.capture(stream, call)
            device.capture(stream, lambda: None)
            assert all(queue.captured is None for queue in gpu.queues.values())

    def test_a_capture_that_breaks(self, device: Device, gpu: FakeGpu) -> None:
        with device:
            stream = device.stream()
            with pytest.raises(CudaFailed, match="previous error during capture"):
                device.capture(stream, lambda: gpu.queues[stream.handle].__setattr__("broken", True))
            with pytest.raises(CudaFailed, match="not permitted when stream is capturing"):
                device.capture(stream, lambda: device.allocate(4))
            with pytest.raises(ZeroDivisionError):
                device.capture(stream, lambda: 1 / 0)
            device.launch(device.capture(stream, lambda: None))

    def test_after_closing(self, device: Device) -> None:
        graph = device.capture(device.stream(), lambda: None)
        device.close()
        with pytest.raises(Misused, match="this graph was freed"):
            device.launch(graph)

    @pytest.mark.parametrize("call", ["begin_capture", "end_capture", "launch"])
    def test_errors_carry_cudas_words(self, device: Device, gpu: FakeGpu, call: str) -> None:
        with device:
            stream = device.stream()
            gpu.fail[call] = (OUT_OF_MEMORY, "out of memory")
            with pytest.raises(CudaFailed, match="out of memory"):
                device.launch(device.capture(stream, lambda: None))
            del gpu.fail[call]
            device.launch(device.capture(stream, lambda: None))
        assert gpu.leaks() == []


def test_the_newest_is_freed_first(gpu: FakeGpu) -> None:
    with Device(MAKERS["cuda-bindings"](gpu)) as device:
        stream = device.stream()
        device.event()
        device.allocate(4)
        device.capture(stream, lambda: None)
        gpu.calls.clear()
    assert [call for call in gpu.calls if "free" in call] == ["free_graph", "free", "free_event", "free_stream"]
    assert gpu.calls[0] == "synchronize"


def test_memory_that_torch_hands_on_is_not_written_by_others(gpu: FakeGpu) -> None:
    done: list[int] = []
    gpu.enqueue(0, lambda: done.append(1))  # of the stream that used the memory before
    with Device(MAKERS["torch"](gpu)) as device:
        device.allocate(4)
        assert done == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_on_a_gpu(name: str) -> None:
    try:
        backend = open_backend(name)
    except Unavailable as error:
        pytest.skip(str(error))
    with Device(backend) as device:
        stream, memory = device.stream(), device.allocate(DATA.nbytes)
        device.upload(memory, DATA, stream)
        np.testing.assert_array_equal(device.download(memory, DATA.shape, DATA.dtype, stream), DATA)
        first, last = device.event(), device.event()
        device.record(first, stream)
        if not backend.why_no_graphs:
            graph = device.capture(stream, lambda: device.fill(memory, stream))
            np.testing.assert_array_equal(device.download(memory, DATA.shape, DATA.dtype, stream), DATA)
            device.launch(graph)
        else:
            device.fill(memory, stream)
        device.record(last, stream)
        device.wait(last)
        assert 0 < device.elapsed_ms(first, last) < 1000
        assert not device.download(memory, DATA.shape, DATA.dtype, stream).any()
    assert all(device.backend.versions().values())


def test_cuda_bindings_names_the_call_and_the_number(gpu: FakeGpu) -> None:
    gpu.fail["allocate"] = (OUT_OF_MEMORY, "out of memory")
    with pytest.raises(CudaFailed, match="cudaMalloc failed: error 2, out of memory") as caught:
        Device(MAKERS["cuda-bindings"](gpu)).allocate(4)
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
    stream, event, graph = runtime.cudaStream_t(0x5000), runtime.cudaEvent_t(0x6000), runtime.cudaGraphExec_t(0x7000)
    address, data = 0x7F0000000000, np.zeros(8, np.uint8)
    calls: list[Callable[[], object]] = [
        lambda: backend.allocate(8),
        lambda: backend.upload(address, data, stream),
        lambda: backend.download(address, data, stream),
        lambda: backend.fill(address, 8, stream),
        lambda: backend.free(address),
        backend.make_stream,
        lambda: backend.wait_stream(stream),
        backend.make_event,
        lambda: backend.record(event, stream),
        lambda: backend.wait_event(event),
        lambda: backend.elapsed_ms(event, event),
        lambda: backend.free_event(event),
        lambda: backend.begin_capture(stream),
        lambda: backend.end_capture(stream),
        lambda: backend._call("cudaGraphInstantiate", runtime.cudaGraph_t(0x8000), 0),
        lambda: backend._call("cudaGraphDestroy", runtime.cudaGraph_t(0x8000)),
        lambda: backend.launch(graph, stream),
        lambda: backend.free_graph(graph),
        lambda: backend.free_stream(stream),
        backend.synchronize,
    ]
    for call in calls:
        with pytest.raises(CudaFailed):
            call()
    assert int(stream) == 0x5000, "TensorRT gets a stream as a number"
    assert set(backend.versions()) == {"cuda_bindings", "cuda_runtime"}


def test_pycuda_has_no_graphs_and_says_so(gpu: FakeGpu) -> None:
    backend = MAKERS["pycuda"](gpu)
    with Device(backend) as device, pytest.raises(CudaFailed, match=r"capturing a CUDA graph failed: pycuda has none"):
        device.capture(device.stream(), lambda: None)
    calls: list[Callable[[], object]] = [
        lambda: backend.begin_capture(None),
        lambda: backend.end_capture(None),
        lambda: backend.launch(None, None),
        lambda: backend.free_graph(None),
    ]
    for call in calls:
        with pytest.raises(CudaFailed, match="pycuda has none"):
            call()
    assert "begin_capture" not in gpu.calls


class TestOpening:
    """`open_backend`: which one, and why not."""

    @pytest.fixture
    def everything(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
        driver = fake_pycuda(gpu)
        install(monkeypatch, fake_torch(gpu), module("cuda"), module("cuda.bindings"), fake_cuda_bindings(gpu))
        install(monkeypatch, module("pycuda"), driver, module("pycuda.autoprimaryctx", device="GPU 0"))

    @pytest.mark.usefixtures("everything")
    def test_the_first_that_works(self, monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
        assert open_backend().name == "torch"
        install(monkeypatch, fake_torch(gpu, available=False))
        assert open_backend().name == "cuda-bindings"
        install(monkeypatch, "torch")
        assert open_backend().name == "cuda-bindings"
        gpu.fail["set_device"] = (35, "CUDA driver version is insufficient for CUDA runtime version")
        assert open_backend().name == "pycuda"

    @pytest.mark.usefixtures("everything")
    @pytest.mark.parametrize("name", BACKENDS)
    def test_by_name(self, name: str) -> None:
        assert open_backend(name).name == name

    def test_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, "torch", "cuda.bindings.runtime", "pycuda.driver")
        with pytest.raises(Unavailable) as caught:
            open_backend()
        assert caught.value.exit_code == 3
        assert caught.value.install.startswith("pip install 'cuda-bindings=="), "what TensorRT needs is another matter"
        for name in BACKENDS:
            assert f"{name}: " in caught.value.reason
        for name in BACKENDS:
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
    def test_autoinit_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, module("pycuda.autoinit"))
        with pytest.raises(Unavailable, match=r"pycuda\.autoinit was imported"):
            open_backend("pycuda")

    @pytest.mark.usefixtures("everything")
    def test_pycuda_on_another_gpu_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, module("pycuda.autoprimaryctx", device="GPU 1"))
        with pytest.raises(Unavailable, match="pycuda chose another GPU than the first"):
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
