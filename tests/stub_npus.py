"""A machine with NPUs, as far as the project can ask for them.

Run as a module it is a stage on a machine of $NPUS of them, in the current folder: it starts $WORKERS processes, those
of a cache ($STAGE: cache) or under msrun those of a training ($STAGE: train), and each writes rank-<number>.json about
itself."""

import inspect
import itertools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import npu
from pipeline.training import launch
from pipeline.workers.crew import crew
from pipeline.workers.share import Done, share
from tests.training.training_samples import params

HCCL = ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")


def show(patch: pytest.MonkeyPatch, folder: Path, count: int) -> None:
    """Device files of `count` NPUs, which this process then finds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ["davinci_manager", *(f"davinci{number}" for number in range(count))]:
        (folder / name).touch()
    patch.setattr(npu, "FOLDER", folder)


class _Once:
    """What MindSpore's runtime keeps of its settings: each may be set once."""

    def __init__(self, calls: list):
        self.calls = calls

    def get_instance(self):
        return self

    def _is_set(self, name: str) -> bool:
        return any(call[0] == name for call in self.calls)

    def is_memory_configured(self) -> bool:
        return self._is_set("set_memory")

    def set_memory(self, initial, increase, largest, level, huge_pages):
        self.calls.append(("set_memory", largest, level))

    def is_kernel_launch_group_configured(self) -> bool:
        return self._is_set("set_kernel_launch_group")

    def get_enable_kernel_launch_capture(self) -> bool:
        return False

    def set_kernel_launch_group(self, threads, groups):
        self.calls.append(("set_kernel_launch_group", threads, groups))


def stub_mindspore(patch: pytest.MonkeyPatch) -> list[tuple]:
    """Stub MindSpore's calls that want an NPU; -> those calls, noted as they come: (name, arguments...). They must fit
    MindSpore's own signatures, and the runtime's settings pass its own checks."""
    import pipeline.device

    import mindspore as ms
    from mindspore.runtime import executor, memory

    calls: list[tuple] = []

    def note(module, name: str) -> None:
        signature = inspect.signature(getattr(module, name))

        def noted(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            arguments = arguments.get("kwargs", arguments)
            calls.append((name, *arguments.values()))

        patch.setattr(module, name, noted)

    for name in ("set_device", "set_context", "set_deterministic", "set_auto_parallel_context"):
        note(ms, name)
    for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32"):
        note(ms.device_context.ascend.op_precision, name)
    for module in (memory, executor):
        patch.setattr(module, "RuntimeConf", _Once(calls))
    patch.setattr(ms.communication, "init", lambda: calls.append(("init", *map(os.environ.get, HCCL))))
    patch.setattr(ms.communication, "get_rank", lambda: int(os.environ["RANK_ID"]))
    patch.setattr(ms.communication, "get_group_size", lambda: int(os.environ["RANK_SIZE"]))
    patch.setattr(ms.device_context.ascend, "is_available", lambda: True)
    loaded = SimpleNamespace(load_plugin_error=lambda: "")
    patch.setattr(pipeline.device, "MSContext", SimpleNamespace(get_instance=lambda: loaded))
    return calls


def stub_sink(patch: pytest.MonkeyPatch, kernel: bool = True) -> list[int]:
    """Let MindSpore's own `data_sink` run, with its checks, up to what only an NPU has: the queue on the device, and
    with `kernel` the kernel that takes a row from it. -> the numbers of the rows that were taken, as they come.

    As MindSpore's documentation has it, the queue is filled without end and wraps in silence."""
    import mindspore as ms
    from mindspore.dataset.engine.datasets import TransferDataset
    from mindspore.graph import api

    module = sys.modules["mindspore.train.data_sink"]  # which `mindspore.train.data_sink`, the function, hides
    real, get_next, taken, rows = ms.context.get_context, ms.ops.GetNext, [], []

    def send(self, num_epochs):
        assert num_epochs == -1
        (dataset,) = self.children
        rows.append(row for _ in itertools.count() for row in enumerate(dataset.create_tuple_iterator(num_epochs=1)))

    def make(types, shapes, number, queue):
        get_next(types, shapes, number, queue)  # its own checks

        def take():
            place, row = next(rows[-1])
            taken.append(place)
            assert [tensor.dtype for tensor in row] == list(types) and len(row) == number
            assert [list(tensor.shape) for tensor in row] == [list(shape) for shape in shapes]
            return tuple(row)

        return take

    context = SimpleNamespace(**vars(ms.context))
    context.get_context = lambda key: "Ascend" if key == "device_target" else real(key)
    patch.setattr(module, "context", context)
    patch.setattr(api, "init_exec_dataset", lambda **settings: True)
    patch.setattr(TransferDataset, "send", send)
    if kernel:
        patch.setattr(ms.ops, "GetNext", make)
    return taken


def main() -> None:
    show(pytest.MonkeyPatch(), Path("dev"), int(os.environ["NPUS"]))
    workers = int(os.environ["WORKERS"])
    if os.environ["STAGE"] == "cache":
        with crew(SimpleNamespace(workers=workers, cluster=None), _cache_worker, {}) as found:
            list(share(found, list(range(4 * workers)), lambda *_: None)) if found else _report("0")
    elif not launch.inside():
        changes = {"device.target": "auto", "device.workers": workers, "device.master": os.environ["MASTER"]}
        launch.start(params(**changes).device, [__file__], Path("logs"))
    elif os.environ["MS_ROLE"] == "MS_WORKER":
        _report(os.environ["RANK_ID"])


def _cache_worker(*_):
    show(pytest.MonkeyPatch(), Path("dev"), int(os.environ["NPUS"]))
    _report(os.environ["DEVICE_ID"])

    def work(unit):
        time.sleep(0.5)
        yield Done([])

    return work


def _report(name: str) -> None:
    Path(f"rank-{name}.json").write_text(json.dumps({"npu": npu.own()}))


if __name__ == "__main__":
    main()
