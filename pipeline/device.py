"""The device: the one file that knows what runs on a CPU, what on an Ascend NPU, and that sets MindSpore up for it.

Import it before anything that needs MindSpore: environment variables must be set before the first import.
What concerns the NPU was written against MindSpore 2.10.0's own signatures and not run on an NPU."""

import functools
import gc
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline import npu
from pipeline.stage import StageError

# On CPUs with AVX-512 the wheel's oneDNN falls back to a reference convolution, up to 80 times slower. Only the train
# stage lifts this, before it comes here: it has a convolution of its own.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
# Waiting OpenMP threads would spin beside MindSpore's own thread pool and halve its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# How many seconds the NPUs' ranks wait for each other, to connect and in each collective. CANN's own are 120 (MindSpore
# makes 600 of them when it is imported) and 1836; but a rank that compiles lets the others wait, and SDXL's graph took
# half an hour on a 910B (MindONE's tables). CANN takes up to 7200 for the first and more for the second.
os.environ.setdefault("HCCL_CONNECT_TIMEOUT", "7200")
os.environ.setdefault("HCCL_EXEC_TIMEOUT", "7200")
# How long the ranks' scheduler may hear nothing of one, in seconds, before it ends the run. MindSpore's own are 30, which
# a busy computer exceeds. A process that died is seen at once on its own node, and after this time on the others.
os.environ.setdefault("MS_NODE_TIMEOUT", "60")
if not npu.files():  # where there are some, MindSpore's warnings about its Ascend plug-in are for the reader
    os.environ.setdefault("GLOG_v", "3")

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from mindspore import communication  # noqa: E402
from mindspore._c_expression import MSContext  # noqa: E402

log = logging.getLogger(__name__)


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
    deterministic: bool = True

    @property
    def ascend(self) -> bool:
        return self.target == "Ascend"

    def memory(self) -> int:
        """Bytes that this process has in use: of the NPU's memory, or of the computer's."""
        if self.ascend:
            return ms.runtime.memory_allocated()
        return psutil.Process().memory_info().rss

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

    def all_agree(self, opinion: bool) -> bool:
        """Whether `opinion` is true on every rank. Every rank must call it."""
        return bool(self.all_reduce(np.array([opinion], np.float32))[0] == self.world_size)


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
    deterministic: bool | Literal["auto"] = True,
    kernel_launch_group: list[int] | None = None,
    max_device_memory: str | None = None,
    memory_optimize_level: str = "O0",
    compile_cache: bool = False,
) -> Device:
    """Choose the device, graph mode and kind of kernels; log what was chosen. Once per process. Raises StageError when
    the machine has no such device or MindSpore cannot use it.

    `distributed`: this process is one of several ranks (started by msrun, mpirun or with a rank table) and joins them.
    The scheduler that msrun starts beside them stays in here until they are done, and its process ends here.
    `deterministic`: "auto" is true on a CPU and false on an NPU. `jit_level`, `kernel_launch_group` (threads, groups),
    `max_device_memory` (such as "59GB") and `memory_optimize_level` are Ascend's."""
    # MindSpore collects garbage before each compilation; all that was imported is none, and takes it 0.2 s to look through.
    gc.freeze()
    target = npu.target(target)
    deterministic = npu.deterministic(deterministic, target)
    if target == "Ascend":
        _set_up_ascend(distributed, kernel_launch_group, max_device_memory, memory_optimize_level)
    else:
        ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": jit_level})
    ms.set_deterministic(deterministic)
    rank, world_size = _join() if distributed else (0, 1)
    device = Device(target, rank, world_size, attention, sink_size, jit_level, compile_cache, deterministic)
    log.info(
        "device: %s, rank %d of %d, graph mode, jit level %s, %sdeterministic kernels, %s",
        target, rank, world_size, jit_level, "" if deterministic else "not ",
        f"data sink of {sink_size} steps" if sink_size else "no data sink",
    )  # fmt: skip
    return device


def _set_up_ascend(joins: bool, launch_group: list[int] | None, max_memory: str | None, optimize_level: str) -> None:
    """Not run on an NPU. Once per process, before `init`."""
    _check_plug_in()
    if joins and "MS_ROLE" in os.environ:  # under msrun `init` chooses
        ms.set_device("Ascend")
    else:
        number = npu.own()
        ms.set_device("Ascend", number)
        log.info("NPU: number %d of %d", number, npu.count())
    memory = {"optimize_level": optimize_level} | ({} if max_memory is None else {"max_size": max_memory})
    if memory != {"optimize_level": "O0"}:  # MindSpore's own; it takes one call
        ms.runtime.set_memory(**memory)
        log.info("device memory: %s", memory)
    if launch_group is not None:
        threads, groups = launch_group
        ms.runtime.set_kernel_launch_group(thread_num=threads, kernel_group_num=groups)
        log.info("kernel launch: %d groups from %d threads", groups, threads)
    precision = ms.device_context.ascend.op_precision
    precision.precision_mode("must_keep_origin_dtype")
    # By default float32 convolutions, the VAE's above all, would be computed in a shorter format (HF32).
    precision.conv_allow_hf32(False)
    precision.matmul_allow_hf32(False)


def _check_plug_in() -> None:
    """Raises StageError when MindSpore has not loaded its Ascend plug-in, or CANN's compiler of kernels lacks a
    package: MindSpore goes on as if there were no NPU, or until the first kernel that must be compiled."""
    home = os.environ.get("ASCEND_HOME_PATH")
    cann = f"ASCEND_HOME_PATH is {home or 'not set, so CANN is not sourced: its set_env.sh sets it'}"
    reason = MSContext.get_instance().load_plugin_error().strip()
    if not ms.device_context.ascend.is_available() or "ops_ascend.so failed" in reason:
        raise StageError(
            f"this machine has an NPU ({npu.files()[0]}), but MindSpore {ms.__version__} did not load its Ascend "
            f"plug-in:\n{reason or 'MindSpore gives no reason'}\n{cann}. Source CANN's set_env.sh in this shell, and see "
            "docs/sdxl-on-npus.md which versions fit each other; or set device.target to CPU"
        )
    try:
        importlib.import_module("te")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != "te":  # that te itself is missing MindSpore says, and goes on
            raise StageError(
                f"CANN's compiler of kernels (te; {cann}) needs the Python package {error.name}, which is not "
                "installed: `make repro NPU=1`, or `pip install -r requirements-npu.txt`"
            ) from None


def _join() -> tuple[int, int]:
    """(rank, world size) of this process, for data-parallel training."""
    communication.init()
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        raise SystemExit(0)
    ms.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True)
    return communication.get_rank(), communication.get_group_size()


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
