"""The CUDA kernels on the CPU: as much of CuPy as the projector asks for, over NumPy arrays and g++.

It runs the threads of a grid one after the other. It shows that the arithmetic is right, and nothing of how a GPU runs
it: no GPU memory, no order of threads, no speed.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aps_mini_apps.sirt import projectors

FREE = 2**30
"""Bytes that the card says are free."""

KERNELS = ("trace_rays", "fill_residual", "add_back")

CUDA = """
#include <algorithm>
#include <cmath>
#include <utility>
using std::min;
#define __global__
#define __device__
static struct Index { unsigned x, y; } blockIdx, blockDim, threadIdx;
"""

HALF = """
typedef _Float16 __half;
static inline float __half2float(__half kept) { return kept; }
static inline __half __float2half(float value) { return value; }
"""

GRID = """
template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*(A *)arguments[I]...);
}
template <class... A>
static void run(void (*kernel)(A...), unsigned width, unsigned height, unsigned threads, void **arguments) {
    blockDim = {threads, 1};
    for (blockIdx.y = 0; blockIdx.y < height; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < width; ++blockIdx.x)
            for (threadIdx = {0, 0}; threadIdx.x < threads; ++threadIdx.x)
                call(kernel, arguments, std::index_sequence_for<A...>{});
}
""" + "".join(
    f'extern "C" void grid_of_{name}(unsigned w, unsigned h, unsigned t, void **a) {{ run({name}, w, h, t, a); }}\n'
    for name in KERNELS
)


def load(monkeypatch: pytest.MonkeyPatch, folder: Path) -> ModuleType:
    """Return the module `cuda` over a CuPy that computes on the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("the CUDA kernels run on the CPU only where g++ is installed")
    cupy = SimpleNamespace(zeros=np.zeros, asarray=np.array, asnumpy=np.array, stack=np.stack)
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1, memGetInfo=lambda: (FREE, 2 * FREE)))
    cupy.RawModule = lambda code, options: SimpleNamespace(get_function=_compile(code, options, folder))
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # type: ignore[arg-type]
    path = Path(projectors.__file__).with_name("cuda.py")
    spec = importlib.util.spec_from_file_location("cuda_on_cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(code: str, options: tuple[str, ...], folder: Path) -> Callable[[str], Callable[..., None]]:
    library = folder / f"kernels{''.join(options)}.so"
    if not library.exists():
        (folder / "cuda_fp16.h").write_text(HALF)
        source = folder / "kernels.cpp"
        source.write_text(CUDA + code + GRID)
        command = ["g++", "-O1", "-std=c++17", "-shared", "-fPIC", *options, f"-I{folder}", str(source), "-o"]
        subprocess.run([*command, str(library)], check=True, timeout=120)
    loaded = ctypes.CDLL(str(library))

    def get_function(name: str) -> Callable[..., None]:
        return lambda grid, block, arguments: _launch(getattr(loaded, f"grid_of_{name}"), grid, block, arguments)

    return get_function


def _launch(run: Any, grid: tuple[int, int], block: tuple[int, int], arguments: tuple[Any, ...]) -> None:
    values = [
        np.array(value.ctypes.data) if isinstance(value, np.ndarray) and value.ndim else np.array(value)
        for value in arguments
    ]
    assert all(value.flags.c_contiguous for value in arguments if isinstance(value, np.ndarray))
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    run(*grid, block[0], pointers)
