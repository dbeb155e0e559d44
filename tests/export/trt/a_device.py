"""Make a process one of a device: packages that a device lacks cannot be imported, and TensorRT and cuda-bindings are stand-ins.

`BECOME` runs first in such a process, before anything of ours is imported.
"""

from __future__ import annotations

BECOME = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

BLOCKED = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocked())

from tests.export.trt.fakes_cuda import fake_cuda_bindings, module
from tests.export.trt.fakes_gpu import FakeGpu
from tests.export.trt.fakes_run import FakeTensorRT, Rig, install, plan, save

class Patch:
    setattr = staticmethod(setattr)
    setitem = staticmethod(dict.__setitem__)

gpu = FakeGpu()
trt = FakeTensorRT(gpu, "10.3.0")
install(Patch, trt)
for made in (module("cuda"), module("cuda.bindings"), fake_cuda_bindings(gpu)):
    sys.modules[made.__name__] = made

def tell(code):
    ours = sorted(name for name in sys.modules if name.partition(".")[0] == "export")
    present = sorted(set(sys.modules) & set(BLOCKED))
    print(json.dumps({"code": code, "leaks": gpu.leaks(), "modules": ours, "present": present}))
"""
