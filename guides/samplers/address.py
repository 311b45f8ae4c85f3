"""A density at an address: what lets a sampler in another language call machine code without Python in between."""

from __future__ import annotations

import ctypes
import hashlib
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from guides.compile.cache import COMPILING, find, keep, usable_folder
from guides.compile.compilers import CompilerError, built_by, compiler, processor, run_compiler
from guides.density.density import LogDensity

__all__ = ["model_at_address"]

_SECONDS = 60.0
_RELEASE = "0.16."
_FLAGS = ("-O2", "-shared", "-fPIC", "-w")
# Every call has memory of its own, so that any number of threads may be in it at once. The description holds: the address of
# a step, D, how many constants it has, how many results, bytes of memory, and the addresses of the constants.
_SOURCE = """
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Step)(int64_t, void**);

extern "C" int64_t density(uint64_t dim, double* at, double* gradient, double* value, void* description) {
  const int64_t* d = (const int64_t*)description;
  const int64_t size = d[1], constants = d[2], results = d[3];
  if ((int64_t)dim != size || results != size + 1) return -1;
  char* room = (char*)malloc(8 * results + 8 * (constants + 3) + d[4] + 64);
  if (!room) return -2;
  double* result = (double*)room;
  void** places = (void**)(room + 8 * results);
  places[0] = at;
  for (int64_t i = 0; i < constants; ++i) places[1 + i] = (void*)d[5 + i];
  places[constants + 1] = result;
  places[constants + 2] = (void*)(((uintptr_t)(places + constants + 3) + 63) / 64 * 64);
  ((Step)d[0])(1, places);
  *value = result[0];
  memcpy(gradient, result + 1, 8 * size);
  int64_t code = isfinite(result[0]) ? 0 : 4;
  for (int64_t i = 0; i < size; ++i) if (!isfinite(gradient[i])) code = 3;
  free(room);
  return code;
}

extern "C" int64_t same(uint64_t dim, uint64_t expanded, double* at, double* out, void* description) {
  if (dim != expanded) return -1;
  memcpy(out, at, 8 * dim);
  return 0;
}
"""


def model_at_address(density: LogDensity, start: Callable[[Any], np.ndarray]) -> Any:
    """Return what nutpie samples from, by the addresses of machine code; ``None`` if the density is not machine code.

    Nor is there one for another release of nutpie than the one whose inner names this file uses.

    :param start: gives a chain its first point.
    """
    if not version("nutpie").startswith(_RELEASE):
        return None
    held = density.machine_code()
    if held is None:
        return None
    library = _library()
    if library is None:
        return None
    numbers = [held.address, density.size, len(held.constants), held.results, held.memory]
    description = np.array([*numbers, *(c.data_ptr() for c in held.constants)], np.int64)
    return _Model.of(density.size, library, description, (held, library, description), start)


def _library() -> ctypes.CDLL | None:
    """Return the functions above, compiled once and kept; ``None`` where there is no compiler that works."""
    command = compiler()
    if command is None:
        return None
    try:
        key = hashlib.sha256(repr((processor(), built_by(command), _FLAGS, _SOURCE)).encode()).hexdigest()[:40]
        path = find(key, ".so")
        if path is None:
            with tempfile.TemporaryDirectory(dir=usable_folder(), prefix=COMPILING) as folder:
                text, made = Path(folder) / "density.cpp", Path(folder) / "density.so"
                text.write_text(_SOURCE)
                run_compiler(command, (*_FLAGS, "-o", str(made), str(text)), _SECONDS)
                path = keep(key, ".so", made.read_bytes())
        return ctypes.CDLL(str(path))
    except (CompilerError, OSError):
        return None


class _Model:
    """The part of a compiled model that nutpie asks for; made of its own classes, which are imported late."""

    @staticmethod
    def of(size: int, library: ctypes.CDLL, description: np.ndarray, held: Any, start: Callable[[Any], np.ndarray]) -> Any:
        from nutpie import _lib
        from nutpie.sample import CompiledModel

        where = description.ctypes.data
        addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in (library.density, library.same)]

        class Addressed(CompiledModel):
            n_dim = property(lambda self: size)
            shapes = property(lambda self: {"z": (size,)})
            coords = property(lambda self: {})

            def _make_sampler(self, settings: Any, init_mean: Any, cores: int, progress: Any, store: Any) -> Any:
                sizes = {"z_dim_0": size}
                variables = _lib.PyVariable.new_variables(["z"], ["float64"], [(size,)], {}, {})
                model = _lib.PyMcModel(
                    _lib.LogpFunc(addresses[0], where, held),
                    _lib.ExpandFunc(size, size, addresses[1], where, held),
                    variables,
                    size,
                    sizes,
                    {},
                    start,
                    None,
                )
                return _lib.PySampler.from_pymc(settings, cores, model, progress, store)

        return Addressed(dims={})
