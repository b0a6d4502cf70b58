"""Convolutions take a bounded workspace, whatever the batch: measured in fresh processes."""

import os
import subprocess
import sys

import pytest

from benchmarks.cases import CASES

MEASURE = """
import sys, tracemalloc
tracemalloc.start()
import numpy as np
from benchmarks.cases import CASES
from xpconv.layers import conv_backward, conv_forward

case = next(case for case in CASES if case.name == sys.argv[1])
batch = int(sys.argv[2]) or case.shapes["x"][0]
rng = np.random.default_rng(0)
x, w, b, dout = (np.ones((batch, *shape[1:]) if name in ("x", "dout") else shape, case.dtype)
                 for name, shape in case.shapes.items())
before = tracemalloc.get_traced_memory()[0]
tracemalloc.reset_peak()
for _ in range(int(sys.argv[3])):  # a thread that gets no tile takes no memory; with more calls each has had one
    out = gradients = None
    out, cache = conv_forward(x, w, b, **case.options)
    gradients = conv_backward(dout, cache)
peak = tracemalloc.get_traced_memory()[1]
print(peak - before - sum(a.nbytes for a in (out, *gradients)))
"""


def workspace(name, batch=0, calls=1):
    """Return the peak beyond inputs, outputs and gradients of a forward and a backward pass, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, name, str(batch), str(calls)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XPCONV_NUM_THREADS": "2", "XP_BACKEND": "numpy"},
    )
    return int(done.stdout)


@pytest.mark.parametrize("name", [case.name for case in CASES if case.kind == "conv"])
def test_workspace_stays_below_64_mib(name):
    assert workspace(name) < 64 * 2**20


def test_workspace_is_the_same_for_any_batch():
    small, large = workspace("c64", 64, calls=10), workspace("c64", 1024)
    assert abs(large - small) < 2**20
