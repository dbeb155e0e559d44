"""Give tests the real bindings of TensorRT, each release in turn (else they skip, and say why), and a fake that computes."""

from __future__ import annotations

import pytest

from tests.export.trt.bindings import RELEASES, Bindings, Release, Unobtainable, obtain
from tests.export.trt.fakes_engines import FakeBuilder, install_builder
from tests.export.trt.fakes_run import Rig, make_rig


def _obtained(release: Release) -> Bindings:
    try:
        return obtain(release)
    except Unobtainable as error:
        pytest.skip(f"no bindings of TensorRT {release.version}: {error}")


@pytest.fixture(scope="session", params=RELEASES, ids=lambda release: release.version)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    """Return the bindings of one release; a test that asks for them runs once per release."""
    return _obtained(request.param)


@pytest.fixture(scope="session", params=[release for release in RELEASES if release.plugins], ids=lambda release: release.version)
def plugin_bindings(request: pytest.FixtureRequest) -> Bindings:
    """Return the bindings of one release whose ahead-of-time plugins we use."""
    return _obtained(request.param)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Let this machine have a fake GPU and a fake TensorRT."""
    return make_rig(monkeypatch, "11.4.0")


@pytest.fixture
def builder(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    """Let runtimes build with a fake."""
    return install_builder(monkeypatch, rig)
