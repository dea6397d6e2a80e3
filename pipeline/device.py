"""The device: the one file that knows what runs on a CPU, what on an Ascend NPU, and that sets MindSpore up for it.

Import it before anything that needs MindSpore: two environment variables must be set before the first import.
What concerns the NPU was written against MindSpore 2.10.0's own signatures and not run on an NPU."""

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

# On CPUs with AVX-512 the wheel's oneDNN falls back to a reference convolution, up to 80 times slower.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Waiting OpenMP threads would spin beside MindSpore's own thread pool and halve its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GLOG_v", "3")  # MindSpore's warnings about plugins that this machine does not have

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import communication  # noqa: E402

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What `setup` decided."""

    target: str  # "CPU" | "Ascend"
    rank: int = 0
    world_size: int = 1
    attention: str = "auto"  # as wished; "auto" is decided with the model's precision

    @property
    def ascend(self) -> bool:
        return self.target == "Ascend"

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        """The sum of `values` over all ranks, float32 in between. Every rank must call it."""
        if self.world_size == 1:
            return values
        return _AllReduce()(ms.Tensor(values.astype(np.float32))).asnumpy().astype(values.dtype)

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        self.all_reduce(np.zeros(1))


class _AllReduce(ms.nn.Cell):
    def __init__(self):
        super().__init__()
        self.all_reduce = ms.ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def setup(target: str = "auto", distributed: bool = False, attention: str = "auto") -> Device:
    """Choose the device, graph mode kernel by kernel (jit level O0) and deterministic kernels; log what was chosen.

    `distributed`: this process is one of several ranks (started by msrun, mpirun or with a rank table) and joins them. The
    scheduler that msrun starts beside them stays in here until they are done, and its process ends here."""
    if target == "auto":
        target = "Ascend" if ms.device_context.ascend.is_available() else "CPU"
    ms.set_device(target)
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    ms.set_deterministic(True)
    rank, world_size = _join() if distributed else (0, 1)
    log.info("device: %s, graph mode, jit level O0, deterministic kernels, rank %d of %d", target, rank, world_size)
    return Device(target, rank, world_size, attention)


def _join() -> tuple[int, int]:
    """(rank, world size) of this process, for data-parallel training."""
    communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        raise SystemExit(0)
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True)
    return communication.get_rank(), communication.get_group_size()


def lazy_inline(init: Callable) -> Callable:
    """Decorate a cell's `__init__`: on Ascend equal cells share one subgraph, which is compiled once. Elsewhere it does
    nothing (the CPU's graph optimiser fails on such graphs), so `setup` comes before the cell is made."""
    shared = ms.lazy_inline(init)

    @functools.wraps(init)
    def choose(self, *args, **kwargs):
        (shared if ms.get_context("device_target") == "Ascend" else init)(self, *args, **kwargs)

    return choose
