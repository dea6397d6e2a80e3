"""The plan's memory of a device: what stays against what is allocated, what comes and goes against measurements."""

from dataclasses import replace
from math import prod

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from benchmarks import liveness
from benchmarks.memory import CASES, planned
from pipeline.models import attention
from pipeline.models.config import CONFIGS, TINY
from pipeline.models.cpu import convolution
from pipeline.models.layers import norm_parameters
from pipeline.models.load import load_weights
from pipeline.models.unet import UNet
from pipeline.planning import cpu, npu, step
from pipeline.planning import device as device_memory
from pipeline.planning import unet as unet_walk
from pipeline.planning.run import from_params, unet_shapes
from pipeline.training import memory
from pipeline.training.optimizers.adafactor import Adafactor
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.adamw8bit import AdamW8bit
from pipeline.training.optimizers.common import decays
from pipeline.training.optimizers.lion import Lion
from pipeline.training.optimizers.prodigy import Prodigy
from pipeline.training.optimizers.rounding import Rounding
from pipeline.training.step import average_of
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX
from tests.models import onednn
from tests.planning.full_size import FULL
from tests.project import ROOT
from tests.training.training_samples import params

SHAPES = unet_shapes("tiny")


def nbytes(parameters) -> int:
    return sum(p.asnumpy().nbytes for p in parameters)


@pytest.fixture(scope="module")
def unet(device):
    return UNet(TINY.unet)


def test_parameters_are_those_that_are_allocated(unet, tmp_path):
    assert memory.parameters(SHAPES, "float32") == nbytes(unet.get_parameters())
    path = tmp_path / "unet.ckpt"
    with ckpt.Writer(path) as writer:
        for p in unet.get_parameters():
            writer.add(PREFIX["unet"] + p.name, p.asnumpy())
    half = UNet(TINY.unet)
    load_weights(half, path, PREFIX["unet"], ms.float16)
    assert memory.parameters(SHAPES, "float16") == nbytes(half.get_parameters())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_optimizer_is_what_is_allocated(unet, ranks):
    adamw = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8, rank=0, ranks=ranks)
    assert memory.optimizer(SHAPES, "adamw", ranks) == nbytes((*adamw.moment1, *adamw.moment2, adamw.updates))
    whole = memory.optimizer(SHAPES, "adamw", 1)
    assert memory.optimizer(SHAPES, "adamw", ranks) == pytest.approx(whole / ranks, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("adafactor", lambda *common: Adafactor(*common)),
        ("adamw8bit", lambda *common: AdamW8bit(*common, 0.9, 0.999, 1e-8)),
        ("lion", lambda *common: Lion(*common, 0.9, 0.99)),
        ("prodigy", lambda *common: Prodigy(*common, 0.9, 0.999, 1e-8)),
    ],
)
def test_the_other_optimizers_are_what_is_allocated(unet, kind, make):
    found = make(unet.trainable_params(), decays(unet), 0.01)
    assert memory.optimizer(SHAPES, kind, 1) == nbytes(parameter for parameter, _ in found.state())


def test_ema_and_rounding_are_what_is_allocated(unet):
    assert memory.in_float32(SHAPES) == nbytes(average_of(unet.trainable_params()))
    assert memory.rounding(SHAPES, "float32") == memory.rounding(SHAPES, "float16") == 0
    norms = norm_parameters(unet)
    weights = [p for path, p in unet.parameters_and_names() if path not in norms]
    rounding = Rounding(weights, 0)
    assert memory.rounding(SHAPES, "bfloat16") == nbytes((rounding.table, rounding.keys))


def test_bytes_of_a_number_at_full_size():
    """Those of docs/optimizers.md."""
    count = 2_567_463_684
    for kind, wanted in {"adamw": 8, "adamw8bit": 2.03, "lion": 4, "prodigy": 8.73, "adafactor": 0.01}.items():
        assert memory.optimizer(unet_shapes("sdxl-base"), kind, 1) / count == pytest.approx(wanted, abs=0.005), kind
    assert memory.optimizer(unet_shapes("sdxl-base"), "lion", 1) == 4 * count + 4
    assert memory.parameters(unet_shapes("sdxl-base"), "bfloat16") / count == pytest.approx(2, abs=0.001)
    assert memory.rounding(unet_shapes("sdxl-base"), "bfloat16") < 0.12e9


def test_what_one_npu_can_hold_is_the_table_of_the_page():
    """docs/optimizers.md, at 1024 with checkpointing, float16 and batch 4."""
    cells = {
        kind: " | ".join(_cell(kind, dtype) for dtype in ("float32", "bfloat16")) for kind in device_memory.TEMPORARIES
    }
    page = (ROOT / "docs/optimizers.md").read_text(encoding="utf-8").split("## What one NPU of 64 GB can hold")[1]
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| ")}
    assert {kind: f"| {kind} | {cell} |" for kind, cell in cells.items()} == {k: rows[k] for k in rows if k}


def _cell(optimizer: str, dtype: str) -> str:
    run = replace(FULL, devices=1, batch_size=4, precision="float16", optimizer=optimizer, weights_dtype=dtype)
    stays, needs = sum(device_memory.stays(run).values()) / 1e9, f"{device_memory.needed(run) / 1e9:.1f}"
    return f"{stays:.1f}, {needs if device_memory.fits(run) else f'**{needs}**'}"


def test_the_full_size_has_sdxls_parameters():
    parts = device_memory.stays(FULL)
    assert parts["weights"] == 2_567_463_684 * 4
    assert parts["optimizer's state"] == 2_567_463_684 * 8 + 4


@pytest.mark.parametrize("form", [cpu, npu])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_walk_meets_every_parameter(config, form):
    blocks = unet_walk.blocks(CONFIGS[config].unet, 2, 16, 16, 4, "tiled", 77, form)
    numbers = sum(layer.numbers for block in blocks for layer in block.layers)
    assert numbers == sum(map(prod, unet_shapes(config).values()))


@pytest.mark.parametrize("form", [cpu, npu])
def test_what_was_kept_is_let_go(form):
    """All skips are joined, and at the end nothing but gradients is there."""
    for recompute in (False, True):
        blocks = list(unet_walk.blocks(TINY.unet, 2, 16, 16, 2, "tiled", 77, form))
        *_, last = step.moments(blocks, recompute, 4)
        late = sum(layer.late for block in blocks for layer in block.layers)
        assert last.kept.total() == late and last.temporary == 0 and bool(late) is (form is npu)
        assert last.gradients == memory.in_float32(SHAPES)
        assert all(size >= 0 for moment in step.moments(blocks, recompute, 4) for size in moment.kept.values())


def test_moments_of_two_blocks_by_hand():
    layers = step.Layer("a", 10, 1, 2, numbers=3), step.Layer("b", 20, 4, 5)
    one = step.Block(layers, inputs=7, recomputable=True)
    two = step.Block((step.Layer("a", 100, 0, 50, numbers=1, copies=8, late=1),))

    def course(recompute):
        return [moment.together for moment in step.moments([one, two], recompute, 4)]

    # forward 1, 10 + 4, 30; backward 138 + 50, then beside 4 of gradients and 1 that is late 30 + 5 and 10 + 2
    assert course(False) == [1, 14, 30, 188, 40, 17, 17]
    # the first block keeps its 7, and then has all
    assert course(True) == [1, 14, 7, 165, 40, 17, 17]


def test_constants_are_those_of_the_layers():
    assert npu.TILE == cpu.TILE == attention.TILE and cpu.ENOUGH == convolution._ENOUGH


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 6), (32, 16), (7, 5)])
def test_a_convolution_keeps_what_its_cell_gives_to_its_gradient(device, monkeypatch, height, width):
    """The CPU's forms: outputs beside the result, of the real cell."""
    cell = convolution.Convolution(3, 1, (1, 1, 1, 1))
    kept = []
    for name in ("by_columns", "by_2", "by_4"):
        real = getattr(cell, name)

        def spied(x, weight, real=real):
            y, *others = real(x, weight)
            kept.append(sum(other.nbytes for other in others))
            return y, *others

        object.__setattr__(cell, name, spied)
    x, weight = np.ones((4, 32, height, width), np.float32), np.ones((64, 32, 3, 3), np.float32)
    cell.construct(ms.Tensor(x), ms.Tensor(weight))
    assert kept == [cpu.conv(4, 32, 64, height, width, 4).kept]


# Peaks that benchmarks/memory.py measured, in MB: a process with MindSpore 2.10.0 on two cores of an AMD EPYC, one with
# AVX-512 (Zen 4) and one without (Zen 3).
MEASURED = {
    True: {"tiny": 145.1, "tiny-large": 525.6, "middle": 747.6, "middle-large": 1275.6},
    False: {"tiny": 95.7, "tiny-large": 439.2, "middle": 577.9, "middle-large": 1082.6},
}


# What benchmarks/liveness.py replayed of the tiny UNet's graph for an NPU, in MB, without and with gradient
# checkpointing: batch 8, 32x32 latents; as MindSpore lists it, and as its runtime runs it.
REPLAYED = [(False, 156.1), (True, 88.5), (False, 155.9), (True, 63.2)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("avx512", MEASURED)
def test_the_plan_is_within_a_quarter_of_what_was_measured(monkeypatch, avx512, case):
    monkeypatch.setattr(cpu, "has_scratchpads", lambda: avx512)
    found = sum(planned(*CASES[case]).values()) / 1e6
    assert found == pytest.approx(MEASURED[avx512][case], rel=device_memory.MARGIN)


@pytest.mark.skipif(cpu.has_scratchpads(), reason="this CPU has AVX-512")
def test_without_avx512_onednn_names_no_scratchpads():
    products = [(1024, 64, 256, False, True, 0), (512, 2048, 512, True, False, 0), (16, 4096, 16, False, True, 2)]
    assert onednn.scratchpads(products) == [0, 0, 0]


@pytest.mark.skipif(not cpu.has_scratchpads(), reason="this CPU has no AVX-512, whose products are counted")
def test_scratchpads_are_those_that_onednn_names(monkeypatch):
    """The norm's and the linear layers', over the layers of each case."""
    numbers = [prod(shape) for shape in SHAPES.values() if len(shape) > 1 and prod(shape) % 32 == 0]
    found = onednn.scratchpads([(16, n // 32, 16, False, True, 2) for n in numbers])
    assert sum(map(cpu.norm_scratchpad, numbers)) == pytest.approx(sum(found), rel=0.1)
    assert cpu.norm_scratchpad(max(numbers)) == pytest.approx(max(found), rel=0.01)
    products = []
    monkeypatch.setattr(cpu, "scratchpads", lambda *product: products.append(product) or 0)
    for config, side, batch in CASES.values():
        list(unet_walk.blocks(CONFIGS[config].unet, batch, side, side, 4, "tiled", 77, cpu))
    monkeypatch.undo()
    forward = [(rows, inputs, outputs, False, True, 0) for rows, inputs, outputs in products]
    backward = [(outputs, rows, inputs, True, False, 0) for rows, inputs, outputs in products]
    found = sum(onednn.scratchpads(forward + backward))
    assert sum(cpu.scratchpads(*product) for product in products) == pytest.approx(found, rel=0.2)


def test_each_graph_of_a_cpu_has_scratchpads_of_its_own():
    run = replace(FULL, config="tiny", target="CPU", resolution=64, precision="float32", devices=1, batch_size=16)
    one, three = device_memory.scratchpads(run), device_memory.scratchpads(replace(run, buckets=3))
    assert three == 3 * one > 50e6
    # the totals' norm is in the update's graph, which is one, and several ranks have another sum
    norm = sum(cpu.norm_scratchpad(prod(shape)) for shape in SHAPES.values() if len(shape) > 1)
    assert device_memory.scratchpads(replace(run, buckets=3, accumulation=2)) == three - 2 * norm
    assert device_memory.scratchpads(replace(run, devices=2)) == one - norm
    assert not any("oneDNN" in name for name in device_memory.stays(FULL))


@pytest.mark.parametrize(("recompute", "replayed"), REPLAYED)
def test_the_npus_form_is_within_a_quarter_of_mindspores_orders(recompute, replayed):
    assert liveness.planned(TINY.unet, 32, 8, recompute, False) / 1e6 == pytest.approx(replayed, rel=0.25)


def test_a_loras_plan_lies_between_mindspores_orders():
    """Of the same with gradient checkpointing: as its runtime runs it, and as MindSpore lists it (docs/adapters.md)."""
    assert 33.2 < liveness.planned(TINY.unet, 32, 8, True, True) / 1e6 < 81.8


def test_what_was_published_fits_and_what_was_not_does_not():
    """MindONE (docs/vanilla_finetune.md, MindSpore 2.3.1, 1024 x 1024): on cards of 64 GB, with weights, gradients and
    moments in float16 and without recomputation, batch 4 ran and 6 was out of memory."""
    held = 4 * 2 * 2_567_463_684

    def together(batch):
        run = replace(FULL, batch_size=batch, precision="float16", weights_dtype="float16")
        run = replace(run, gradient_checkpointing=False)
        parts = device_memory.backward(run)
        return held + sum(parts.values()) - parts["weights in the compute dtype"]

    assert together(4) < device_memory.CARD - device_memory.RESERVED < together(6)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize(("batch", "checkpointing"), [(6, False), (8, False), (16, False), (16, True)])
def test_batches_that_do_not_fit(devices, precision, batch, checkpointing):
    run = replace(
        FULL, devices=devices, precision=precision, batch_size=batch, attention="auto",
        shard_optimizer=devices > 1, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    assert not device_memory.fits(run)


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"batch_size": 2}, True),
        ({"resolution": 2048}, True),
        ({"gradient_checkpointing": False}, True),
        ({"precision": "float32", "attention": "tiled"}, True),
        ({"attention": "plain"}, True),
        ({"precision": "float16", "weights_dtype": "float16"}, False),
        ({"weights_dtype": "bfloat16"}, False),
    ],
)
def test_what_changes_the_backward_pass(change, grows):
    before, after = (sum(device_memory.backward(run).values()) for run in (FULL, replace(FULL, **change)))
    assert (after > before) is grows and after != before


def test_what_the_update_holds():
    whole = 4 * 2_567_463_684
    one = replace(FULL, devices=1)
    # each bucket's are clipped when it is its turn
    assert device_memory.update(one) == {"gradients": whole, "gradients of a bucket, unscaled and clipped": 2**28}
    halves = device_memory.update(replace(one, weights_dtype="bfloat16", sinks=True))
    assert halves["gradients in float32"] == whole and halves["random numbers, of this update"] < 0.12e9
    assert device_memory.update(replace(one, max_grad_norm=0.0)) == {"gradients": whole}
    sharded = device_memory.update(replace(FULL, shard_optimizer=True))
    assert sharded["gradients summed over the ranks, in buffers"] == pytest.approx(whole / 8, rel=0.01)
    assert sharded["buckets on their way"] == 3 * 2**28
    unsharded = device_memory.update(FULL)
    assert unsharded["gradients summed over the ranks, in buffers"] == whole
    # with micro-batches the totals are what is updated with
    assert "gradients" not in device_memory.update(replace(one, accumulation=2))
    assert device_memory.stays(replace(one, accumulation=2))["float32 totals of micro-batches' gradients"] == whole
    assert device_memory.stays(FULL)["HCCL's buffers, to send and to receive"] == 2 * 200 * 2**20


def test_a_forward_pass_keeps_skips_and_lets_blocks_go():
    one = step.Block((step.Layer("a", 10, 1, 9), step.Layer("b", 20, 4, 9, copies=3)))
    skip, join = (step.Block((step.Layer("skips", kept, 0, 0),)) for kept in (7, -7))
    # before the last layer 10 + 4; then beside the skip of 7 and the copies 3 and, of the second block, 10 + 4
    assert step.forward([one]) == {"a block": 14}
    assert step.forward([one, skip, one, join]) == {"a block": 14, "skips": 7, "weights in the compute dtype": 3}
    assert step.forward([one, skip, join, one]) == {"a block": 14, "weights in the compute dtype": 3}


def test_weights_are_put_by_on_the_device_while_their_averages_are_validated():
    run = replace(FULL, ema=True, validation_share=0.02)
    parts, other = device_memory.validation(run), replace(run, weights_dtype="bfloat16", precision="bfloat16")
    assert parts["weights, put by"] == 4 * 2_567_463_684
    assert parts["weights in the compute dtype (estimated)"] == pytest.approx(2 * 2_567_463_684, rel=0.01)
    assert 0 < sum(parts.values()) - 6 * 2_567_463_684 < sum(device_memory.backward(run).values())
    halves = device_memory.validation(other)
    assert halves["weights, put by"] == device_memory.stays(other)["weights"]
    assert sum(halves.values()) - halves["weights, put by"] < 0.5e9  # no copies in another dtype
    assert not device_memory.validation(replace(run, ema=False))
    assert not device_memory.validation(replace(run, validation_share=0.0))
    lora = replace(run, adapter="lora", adapter_targets=("*",))
    assert device_memory.validation(lora)["weights, put by"] == device_memory.stays(lora)["adapters"] > 0
    # of a small batch on NPUs that share the optimizer it is the fullest moment
    sharded = replace(run, shard_optimizer=True)
    assert "weights, put by" in device_memory.device_bytes(sharded)
    assert device_memory.needed(sharded) > device_memory.needed(replace(sharded, validation_share=0.0))


def test_buffers_are_as_large_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("HCCL_BUFFSIZE", "120")
    assert from_params(params(), 1).hccl_buffer == 120 * 2**20
