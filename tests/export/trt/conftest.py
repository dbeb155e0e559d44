"""Give tests the real bindings of TensorRT, each release in turn; where they cannot be had the tests skip, and say why."""

from __future__ import annotations

import pytest

from tests.export.trt.bindings import RELEASES, Bindings, Unobtainable, obtain


@pytest.fixture(scope="session", params=RELEASES, ids=lambda release: release.version)
def bindings(request: pytest.FixtureRequest) -> Bindings:
    """Return the bindings of one release; a test that asks for them runs once per release."""
    try:
        return obtain(request.param)
    except Unobtainable as error:
        pytest.skip(f"no bindings of TensorRT {request.param.version}: {error}")


@pytest.fixture(scope="session", params=[release for release in RELEASES if release.plugins], ids=lambda release: release.version)
def plugin_bindings(request: pytest.FixtureRequest) -> Bindings:
    """Return the bindings of one release whose ahead-of-time plugins we use."""
    try:
        return obtain(request.param)
    except Unobtainable as error:
        pytest.skip(f"no bindings of TensorRT {request.param.version}: {error}")
