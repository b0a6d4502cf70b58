"""Fixtures: every backend that works on this machine, and every memory layout.

``XP_BACKEND`` may be set while the tests run: it sets the default backend, nothing else. ``XPCONV_REQUIRE=torch,...``
turns the skips of those libraries into failures, ``XPCONV_ACCELERATE=0`` tests the portable versions on all of them.
"""

import os

import pytest

from tests.helpers import BACKENDS, LAYOUTS, find_backend, required_libraries

KEPT = ("XPCONV_ACCELERATE", "XPCONV_DATA", "XPCONV_REQUIRE")  # settings that tell how to test


def pytest_configure(config):
    required_libraries()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's waiting threads slow thousands of tiny tests down


@pytest.fixture(autouse=True)
def _default_settings():
    """Take the settings of the machine away; tests that want some set their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("XPCONV_") and n not in KEPT]:
            patch.delenv(name)
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend in turn, skipped with its reason where it cannot run."""
    return find_backend(request.param)


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request):
    """Each way to lay an array out in memory: ``layout(backend, numpy_array)``."""
    return request.param
