"""The device: the one file that knows what runs on a CPU, what on an Ascend NPU, and that sets MindSpore up for it.

Import it before anything that needs MindSpore: two environment variables must be set before the first import.
What concerns the NPU was written against MindSpore 2.10.0's own signatures and not run on an NPU."""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import locks, store

# On CPUs with AVX-512 the wheel's oneDNN falls back to a reference convolution, up to 80 times slower. Only the train
# stage lifts this, before it comes here: it has a convolution of its own.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Waiting OpenMP threads would spin beside MindSpore's own thread pool and halve its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings about plugins that this machine does not have

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import communication  # noqa: E402

log = logging.getLogger(__name__)

_KEPT_CACHES = 8  # of compiled graphs; the least recently used are dropped


@dataclass(frozen=True)
class Device:
    """What `setup` decided."""

    target: str  # "CPU" | "Ascend"
    rank: int = 0
    world_size: int = 1
    attention: str = "auto"  # the wish, a kind of models/attention.py or "auto"
    sink_size: int = 0  # training steps per data sink, 0 for none
    jit_level: str = "O0"
    compile_cache: bool = False

    @property
    def ascend(self) -> bool:
        return self.target == "Ascend"

    def attention_kind(self, precision: str) -> str:
        """The kind of attention for a network that computes in `precision`."""
        if self.attention != "auto":
            return self.attention
        return "flash" if self.ascend and precision != "float32" else "tiled"

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` over all ranks, float32 in between. Every rank must call it."""
        if self.world_size == 1:
            return values
        return _all_reduce()(ms.Tensor(values.astype(np.float32))).asnumpy().astype(values.dtype)

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.all_reduce(np.zeros(1))

    def gather(self, text: str) -> list[str]:
        """The `text` of every rank, in their order. Every rank must call it."""
        if self.world_size == 1:
            return [text]
        mine = np.frombuffer(text.encode(), np.uint8)
        lengths = np.zeros(self.world_size, np.int64)
        lengths[self.rank] = len(mine)
        lengths = self.all_reduce(lengths)
        table = np.zeros((self.world_size, lengths.max()), np.uint8)  # bytes are whole numbers in float32 as well
        table[self.rank, : len(mine)] = mine
        table = self.all_reduce(table)
        return [row[:length].tobytes().decode() for row, length in zip(table, lengths, strict=True)]


class _AllReduce(ms.nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ms.ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


@functools.cache
def _all_reduce() -> _AllReduce:
    return _AllReduce()


def setup(
    target: str = "auto",
    distributed: bool = False,
    attention: str = "auto",
    sink_size: int = 0,
    jit_level: str = "O0",
    max_device_memory: str | None = None,
    compile_cache: bool = False,
) -> Device:
    """Choose the device, graph mode and deterministic kernels; log what was chosen.

    `distributed`: this process is one of several ranks (started by msrun, mpirun or with a rank table) and joins them.
    The scheduler that msrun starts beside them stays in here until they are done, and its process ends here.
    `jit_level` and `max_device_memory` (such as "59GB") are Ascend's; on a CPU graphs run kernel by kernel (O0)."""
    if target == "auto":
        target = "Ascend" if ms.device_context.ascend.is_available() else "CPU"
    if target == "Ascend":
        _set_up_ascend(max_device_memory, distributed)
    else:
        ms.set_device("CPU")
        jit_level = "O0"
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": jit_level})
    ms.set_deterministic(True)
    rank, world_size = _join() if distributed else (0, 1)
    device = Device(target, rank, world_size, attention, sink_size, jit_level, compile_cache)
    log.info(
        "device: %s, rank %d of %d, graph mode, jit level %s, deterministic kernels, %s",
        target, rank, world_size, jit_level, f"data sink of {sink_size} steps" if sink_size else "no data sink",
    )  # fmt: skip
    return device


def _set_up_ascend(max_device_memory: str | None, joins: bool) -> None:
    """Not run on an NPU. Once per process, before `init`."""
    if joins and "MS_ROLE" in os.environ:  # under msrun `init` chooses
        ms.set_device("Ascend")
    else:
        ms.set_device("Ascend", _own_npu())
    if max_device_memory is not None:
        ms.runtime.set_memory(max_size=max_device_memory)
        log.info("device memory: at most %s", max_device_memory)
    precision = ms.device_context.ascend.op_precision
    precision.precision_mode("must_keep_origin_dtype")
    # By default float32 convolutions, the VAE's above all, would be computed in a shorter format (HF32).
    precision.conv_allow_hf32(False)
    precision.matmul_allow_hf32(False)


def _own_npu() -> int:
    """The NPU of this process: as msrun or MindSpore (for mpirun) says, else by its rank among plain processes."""
    if "DEVICE_ID" in os.environ:
        return int(os.environ["DEVICE_ID"])
    rank = os.environ.get("RANK_ID")
    return int(rank) % ms.device_context.ascend.device_count() if rank else 0


def _join() -> tuple[int, int]:
    """(rank, world size) of this process, for data-parallel training."""
    communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        raise SystemExit(0)
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True)
    return communication.get_rank(), communication.get_group_size()


@contextlib.contextmanager
def cached_graphs(key: dict, rank: int) -> Iterator[None]:
    """Graphs that are compiled in the block are kept in the store under `key`, or are taken from there.

    MindSpore numbers the graphs that a process compiles, and gives back by number alone: another code, constant or
    shape under the same number is not noticed and computes nonsense. So `key` must hold all that the graphs depend on,
    the block must be the process's first compilation, and compile the same graphs in the same order whenever the key is
    the same."""
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = store.root() / "compile" / name
    with locks.attempt(f"compile-{name}-{rank}") as mine, store.watched(folder) as there:
        if not mine:
            log.info("compile cache: another process compiles the same graphs, this one compiles its own")
            yield
            return
        whole = folder / f"rank-{rank}-is-whole"
        if not whole.exists():  # a killed process may have left parts of files
            store.remove(folder / f"rank_{rank}")
        log.info("compile cache: %s %s", "reads" if whole.exists() else "writes", folder)
        os.environ.setdefault("RANK_ID", str(rank))
        os.environ.update(MS_COMPILER_CACHE_ENABLE="1", MS_COMPILER_CACHE_PATH=str(folder))
        try:
            yield
        finally:
            os.environ["MS_COMPILER_CACHE_ENABLE"] = "0"
        if there():  # else the store was deleted, and the first of the graphs with it
            store.keep(whole, Path.touch)
            store.keep_newest(folder.parent, _KEPT_CACHES)


def sink(step: Callable, source, names: list[str]) -> Callable[[], tuple]:
    """-> function without arguments that runs `step` (a cell) on the next row of `source`, fetched by the device
    itself. Not run on an NPU.

    `source` has a length and gives by index rows of arrays, named by `names`, all of one shape. MindSpore's sink sends
    endlessly and wraps in silence: so the source is the rest of the whole run, and the caller counts. The sink's size
    is 1 here and the caller's loop makes it larger, because a larger one can end in no shorter last one, and a given
    jit_config would make the device loop as well as Python."""
    dataset = ms.dataset.GeneratorDataset(
        source, names, shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
    signature = tuple(ms.Tensor(value) for value in source[0])
    return ms.data_sink(step, dataset, sink_size=1, jit_config=None, input_signature=signature)


def lazy_inline(init: Callable) -> Callable:
    """Decorate a cell's `__init__`: on Ascend equal cells share one subgraph, which is compiled once. Elsewhere it does
    nothing (the CPU's graph optimiser fails on such graphs), so `setup` comes before the cell is made."""
    shared = ms.lazy_inline(init)

    @functools.wraps(init)
    def choose(self, *args, **kwargs):
        (shared if ms.get_context("device_target") == "Ascend" else init)(self, *args, **kwargs)

    return choose
