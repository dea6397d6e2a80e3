"""What oneDNN says that products of two float32 matrices keep for themselves, asked of MindSpore's own library:

    python -m tests.models.onednn '[[m, k, n, transpose_a, transpose_b, batch], ...]'

Prints as JSON the bytes of each scratchpad, with the best instructions of this computer and two threads. `batch` 0 is a product without that axis."""

import ctypes
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# of dnnl.h and dnnl_types.h, oneDNN 3
CPU, FLOAT32, MEMORY_CONSUMPTION = 1, 3, 6


def scratchpads(products: list[tuple]) -> list[int]:
    command = [sys.executable, "-m", "tests.models.onednn", json.dumps(products)]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "DEFAULT", "OMP_NUM_THREADS": "2"}
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def _check(status: int) -> None:
    assert status == 0, f"oneDNN's status {status}"


def _matrix(library, rows: int, columns: int, transposed: bool, batch: int) -> ctypes.c_void_p:
    shape, strides = [rows, columns], [1, rows] if transposed else [columns, 1]
    if batch:
        shape, strides = [batch, *shape], [rows * columns, *strides]
    array, found = ctypes.c_int64 * len(shape), ctypes.c_void_p()
    _check(
        library.dnnl_memory_desc_create_with_strides(
            ctypes.byref(found), len(shape), array(*shape), FLOAT32, array(*strides)
        )
    )
    return found


def _scratchpad(library, engine, m: int, k: int, n: int, transpose_a: bool, transpose_b: bool, batch: int) -> int:
    a, b = _matrix(library, m, k, transpose_a, batch), _matrix(library, k, n, transpose_b, batch)
    product, size = ctypes.c_void_p(), ctypes.c_int64()
    _check(
        library.dnnl_matmul_primitive_desc_create(
            ctypes.byref(product), engine, a, b, None, _matrix(library, m, n, False, batch), None
        )
    )
    _check(library.dnnl_primitive_desc_query(product, MEMORY_CONSUMPTION, 0, ctypes.byref(size)))
    return size.value


def main() -> None:
    library = ctypes.CDLL(str(Path(find_spec("mindspore").origin).parent / "lib/libdnnl.so.3"))
    engine = ctypes.c_void_p()
    _check(library.dnnl_engine_create(ctypes.byref(engine), CPU, ctypes.c_size_t(0)))
    print(json.dumps([_scratchpad(library, engine, *product) for product in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
