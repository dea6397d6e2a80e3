"""Compile the update of several parameters as one of the ranks that msrun started, or alone, and print as JSON what the
graphs hold: {"CPU": {kind: count}, "NPU": ..., "missing": the first kernel that this CPU lacks in the NPU's form}; as
one of several ranks also {"whole": ...}, what an NPU's form holds where each rank has the whole optimizer, and by the
weights' dtype {"given": {dtype: {"norms": [...], "values": [...]}}}, what it gives with documented kernels.

    python -m tests.training.npu_update [float16]     # float16: with loss scaling, and half weights
    python -m tests.training.npu_update optimizers    # {optimizer: {"kinds": {kind: count}, "moves": [bytes], "missing": ...,
                                                      # "peak": bytes of an update of MANY}} of an NPU's form, in bfloat16"""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

SHAPES = [(8, 4, 3, 3), (8,), (8, 8), (8,), (8, 8), (5, 3), (8,), (16, 8)]  # (5, 3) divides among no ranks

MANY = [(257, 257)] * 8  # each a bucket of its own


def held(said: str) -> dict:
    """What a process of this script said."""
    (line,) = [line for line in said.splitlines() if line.startswith("found ")]
    return json.loads(line.removeprefix("found "))


def main(half: bool, folder: str) -> None:
    os.environ |= {
        "MS_DEV_SAVE_GRAPHS": "1",
        "MS_DEV_SAVE_GRAPHS_PATH": folder,
        "MS_DEV_DUMP_IR_PASSES": "backend_pass",
    }
    import pipeline.device

    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops

    from benchmarks import kernels as benchmark
    from benchmarks import liveness
    from pipeline.training import parameter_buckets
    from pipeline.training.optimizers.adafactor import Adafactor
    from pipeline.training.optimizers.adamw import AdamW
    from pipeline.training.optimizers.adamw8bit import AdamW8bit
    from pipeline.training.optimizers.lion import Lion
    from pipeline.training.optimizers.prodigy import Prodigy
    from pipeline.training.step import Apply, Settings, Update
    from tests.golden import rule
    from tests.golden import training_rule as golden
    from tests.training.documented import runs

    device = pipeline.device.setup("CPU", distributed="MS_ROLE" in os.environ)
    parameter_buckets.BYTES = 2000  # several buckets

    def others() -> dict:
        """Each optimizer on bfloat16 weights, one of them large enough for 8 bits."""
        makes = {
            "adamw": lambda *common: AdamW(*common, 0.9, 0.999, 1e-8),
            "adamw8bit": lambda *common: AdamW8bit(*common, 0.9, 0.999, 1e-8),
            "lion": lambda *common: Lion(*common, 0.9, 0.99),
            "prodigy": lambda *common: Prodigy(*common, 0.9, 0.999, 1e-8),
            "adafactor": lambda *common: Adafactor(*common),
        }
        found = {}
        for name, make in makes.items():
            missing = missed(half_update(make, [(8,), (8, 8), (65, 65)]))
            nodes = benchmark.dumped_nodes(Path(folder)).values()
            moves = [sum(node.made) for node in nodes if node.kind == "TensorMove"]
            found[name] = {"missing": missing, "kinds": kinds(), "moves": moves}
            update = half_update(make, MANY)
            missed(Apply(update), *[Tensor(1.0)] * 3, *ones(update))
            nodes = liveness.largest(benchmark.dumped_nodes(Path(folder)))
            found[name]["peak"] = max(liveness.lives(liveness.as_soon_as_ready(nodes)))
        return found

    def half_update(make, shapes: list[tuple[int, ...]]) -> Update:
        parameters = [Parameter(ops.ones(shape, ms.bfloat16), name=f"p{n}") for n, shape in enumerate(shapes)]
        decayed = [len(shape) > 1 for shape in shapes]
        with benchmark.npu_forms():
            return Update(make(parameters, decayed, 0.01), None, Settings(max_grad_norm=1.0))

    def missed(cell: nn.Cell, *inputs) -> str | None:
        try:
            cell.compile(*(inputs or (Tensor(1.0), ones(cell), Tensor(0.1))))
        except RuntimeError as error:
            return re.search(r"Unsupported op \[(\w+)\]", str(error))[1]
        except TypeError as error:
            return re.search(r"Select CPU operator\[(\w+)\]", str(error))[1]

    def update(ranks: int = device.world_size) -> Update:
        dtypes = [ms.float16 if half and len(shape) > 1 else ms.float32 for shape in SHAPES]
        parameters = [
            Parameter(ops.ones(shape, dtype), name=f"p{n}")
            for n, (shape, dtype) in enumerate(zip(SHAPES, dtypes, strict=True))
        ]
        optimizer = AdamW(
            parameters,
            [len(shape) > 1 for shape in SHAPES],
            0.01,
            0.9,
            0.999,
            1e-8,
            rank=device.rank if ranks > 1 else 0,
            ranks=ranks,
        )
        settings = Settings(
            max_grad_norm=1.0, loss_scale=2.0**10 if half else None, rank=device.rank, ranks=device.world_size
        )
        return Update(optimizer, None, settings)

    def given(dtype: ms.Type) -> dict:
        """Four updates of the goldens' parameters. This rank's gradients and the other's have the goldens' as mean."""
        parameters = [
            Parameter(Tensor(rule.normal(f"p {shape}", shape)).astype(dtype), name=f"p{n}")
            for n, shape in enumerate(golden.SHAPES)
        ]
        decayed = [len(shape) > 1 for shape in golden.SHAPES]
        scale = 1024.0 if dtype == ms.float16 else None
        with benchmark.npu_forms():
            optimizer = AdamW(
                parameters, decayed, 0.1, 0.9, 0.99, 1e-6, rank=device.rank, ranks=device.world_size
            )  # fmt: skip
            settings = Settings(max_grad_norm=2.0, loss_scale=scale, rank=device.rank, ranks=device.world_size)
            cell = Step(runs(Update(optimizer, None, settings)))
        norms = []
        for step in range(4):
            gradients = []
            for parameter in optimizer.parameters:
                mean, apart = (rule.normal(f"{name} {parameter.shape}", parameter.shape) for name in (f"g {step}", "e"))
                sign = 1 if device.rank == 0 else -1
                gradients.append(Tensor((scale or 1.0) * (mean + sign * apart)).astype(dtype))
            outcome = cell(Tensor(scale or 1.0, ms.float32), Tensor(1e-2, ms.float32), *gradients)
            norms.append(float(outcome.asnumpy()[1]))
        return {"norms": norms, "values": [p.asnumpy().astype(float).tolist() for p in parameters]}

    class Step(nn.Cell):
        """The gradients one by one: as a tuple of tensors they would be constants of the graph."""

        def __init__(self, update: Update):
            super().__init__(auto_prefix=False)
            self.update = update

        def construct(self, loss, lr, *gradients):
            return self.update(loss, gradients, lr)

    def ones(cell: Update) -> tuple[Tensor, ...]:
        return tuple(ops.ones(p.shape, p.dtype) for p in cell.parameters)

    def kinds() -> Counter:
        found: Counter = Counter()
        for (_, kind), count in benchmark.dumped(Path(folder)).items():
            found[kind] += count
        return found

    if "optimizers" in sys.argv:
        print("found", json.dumps(others()), flush=True)
        return
    missed(update())
    found = {"CPU": kinds()}
    with benchmark.npu_forms():
        cell = update()
    found["missing"] = missed(cell)
    found["NPU"] = kinds()
    if device.world_size > 1:
        with benchmark.npu_forms():
            cell = update(1)
        missed(cell)
        found["whole"] = kinds()
        found["given"] = {str(dtype): given(dtype) for dtype in (ms.float32, ms.float16)}
    if device.rank == 0:
        print("found", json.dumps(found), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main("float16" in sys.argv, folder)
