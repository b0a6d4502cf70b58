"""Fixtures: every backend that works on this machine, and every memory layout.

It lies in the root, so that pytest also reads it before the doctests of one file, and imports xpconv with it. Otherwise
pytest would import that file a second time, with other classes of the same names.

``XP_BACKEND`` may be set while the tests run: it sets the default backend, nothing else. ``XPCONV_REQUIRE=torch,...``
makes tests of those libraries fail where they cannot run, ``XPCONV_ACCELERATE=0`` tests the portable versions on all
of them.
"""

import os
import signal

import hypothesis
import pytest

from tests.helpers import BACKENDS, LAYOUTS, find_backend, required_libraries, why_not

KEPT = ("XPCONV_ACCELERATE", "XPCONV_DATA", "XPCONV_REQUIRE")  # settings that tell how to test
MARKED = {"gpu": "cupy", "torch": "torch"}  # mark: the library without which such tests are left out
LEFT_OUT = pytest.StashKey[dict]()

hypothesis.settings.register_profile("xpconv", deadline=None, database=None)
hypothesis.settings.load_profile("xpconv")


def pytest_configure(config):
    required_libraries()
    config.stash[LEFT_OUT] = {}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's waiting threads slow thousands of tiny tests down


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    """Leave out tests of a library that cannot run here: one line in the summary, not a skip for each test."""
    for mark, library in MARKED.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and library not in required_libraries() and (reason := why_not(library)):
            config.stash[LEFT_OUT][mark] = f"{len(marked)} tests marked {mark} are left out: {reason}"
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if not item.get_closest_marker(mark)]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # this is a worker of pytest-xdist, which prints nothing
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[LEFT_OUT].update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[LEFT_OUT].values():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def _heed_ctrl_c():
    """Let this process and those that it starts receive SIGINT, which shells make background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _default_settings():
    """Take the settings of the machine away; tests that want some set their own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("XPCONV_") and n not in KEPT]:
            patch.delenv(name)
        yield


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend in turn."""
    return find_backend(request.param)


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout.__name__)
def layout(request):
    """Each way to lay an array out in memory: ``layout(backend, numpy_array)``."""
    return request.param


@pytest.fixture
def figures(monkeypatch):
    """Return the list of Matplotlib figures that the test has written."""
    from matplotlib.figure import Figure

    written, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: written.append(self) or savefig(self, *a, **k))
    return written
