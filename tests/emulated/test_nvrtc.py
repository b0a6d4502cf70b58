"""NVIDIA's own compiler accepts the CUDA kernels, and compiles wide loads; it needs no GPU.

`pip install nvidia-cuda-nvrtc` brings it, as `nox -s kernels` does; without it these tests are skipped.
"""

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import xpconv

FOLDERS = [Path(folder) for folder in getattr(find_spec("nvidia"), "submodule_search_locations", None) or ()]
FOUND = [path for folder in FOLDERS for path in sorted(folder.glob("*/lib/libnvrtc*.so.*"), reverse=True)]
SOURCE = Path(xpconv.__file__).parent / "ops" / "cupy" / "kernels.cu"
STREAMED = [
    "unfold",
    "unfold_across_rows",
    "unfold_at_stride_1",
    "fold_at_stride_1",
    "max_pool",
    "max_pool_backward",
    "max_pool_2x2",
    "max_pool_2x2_backward",
    "max_pool_apart_backward",
    "avg_pool_2x2",
    "avg_pool_backward",
    "avg_pool_2x2_backward",
    "avg_pool_apart_backward",
    "to_images",
    "to_rows",
    "normalise",
]
ELEMENTS = ["float", "double", "Half"]
STREAMED += ["normalise_backward", "normalise_relu", "normalise_relu_backward", "relu", "relu_backward"]
STREAMED += ["leaky_relu", "leaky_relu_backward", "gated_normal", "gated_logistic"]

if not FOUND:
    pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc", allow_module_level=True)


@pytest.fixture(scope="module")
def nvrtc():
    for builtins in (path for path in FOUND if "builtins" in path.name):
        ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)  # which NVRTC looks for by name
    return ctypes.CDLL(str(next(path for path in FOUND if "builtins" not in path.name)))


def compile_kernels(nvrtc, *definitions):
    """Return the PTX code, and what the compiler and the assembler say."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.read_bytes(), b"kernels.cu", 0, None, None)
    options = [b"-std=c++17", b"--gpu-architecture=sm_90", b"--ptxas-options=-v"]
    options += [f"-D{definition}".encode() for definition in definitions]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))

    def text(name):
        getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size))
        written = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{name}")(program, written)
        return written.value.decode()

    log = text("ProgramLog")
    assert status == 0, log
    return text("PTX"), log


@pytest.mark.parametrize(("index", "threads"), [("uint8", 256), ("int64", 256), ("uint8", 32)])
@pytest.mark.parametrize(
    ("element", "wide", "store"),
    [("float", 4, "v4.f32"), ("double", 2, "v2.f64"), ("Half", 8, "v4.u32"), *((name, 1, "v") for name in ELEMENTS)],
)
def test_kernels_compile_without_warnings_or_spilled_registers(nvrtc, element, wide, store, index, threads):
    arithmetic = "double" if element == "double" else "float"
    ptx, log = compile_kernels(
        nvrtc, f"Element={element}", f"Real={arithmetic}", f"WIDE={wide}", f"Index={index}", f"THREADS={threads}"
    )
    assert "warning" not in log
    spills = re.findall(r"(\d+) bytes spill", log)
    assert set(spills) == {"0"}
    code = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.DOTALL))
    stores = {name: f"st.global.{store}" in code[name] for name in STREAMED}
    assert stores == dict.fromkeys(STREAMED, wide > 1)
