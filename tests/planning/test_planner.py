"""The planner's bytes against what MindSpore allocates for the tiny UNet, and its advice."""

import shutil
import subprocess
import sys
from dataclasses import replace
from math import prod

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import liveness
from benchmarks.memory import CASES, planned
from pipeline import plan
from pipeline.cache.building import tokens
from pipeline.models import attention
from pipeline.models.config import CONFIGS, TINY
from pipeline.models.cpu import convolution
from pipeline.models.layers import norm_parameters
from pipeline.models.load import load_weights
from pipeline.models.unet import UNet
from pipeline.planning import cpu, disk, duration, host, npu, step
from pipeline.planning import device as device_memory
from pipeline.planning import unet as unet_walk
from pipeline.planning.run import Run, count_index, from_params, unet_shapes
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
from tests.training.training_samples import ROOT, params

SHAPES = unet_shapes("tiny")
FULL = Run(
    config="sdxl-base", images=100_000, resolution=1024, devices=8, batch_size=1, accumulation=1, steps=None, epochs=2,
    precision="bfloat16", weights_dtype="float32", optimizer="adamw", shard_optimizer=False, ema=False,
    gradient_checkpointing=True,
    attention="flash", latent_channels=8, chunks=1,
)  # fmt: skip


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
    assert memory.parameters(unet_shapes("sdxl-base"), "bfloat16") / count == pytest.approx(2, abs=0.001)
    assert memory.rounding(unet_shapes("sdxl-base"), "bfloat16") < 0.12e9


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


# Peaks that benchmarks/memory.py measured, in MB: a process with MindSpore 2.10.0 on two cores of an AMD EPYC.
MEASURED = {"tiny": 145.1, "tiny-large": 525.6, "middle": 747.6, "middle-large": 1275.6}
# What benchmarks/liveness.py replayed of the tiny UNet's graph for an NPU, in MB, without and with gradient
# checkpointing: batch 8, 32x32 latents; as MindSpore lists it, and as its runtime runs it.
REPLAYED = [(False, 156.1), (True, 88.5), (False, 155.9), (True, 63.2)]


@pytest.mark.parametrize("case", MEASURED)
def test_the_plan_is_within_a_quarter_of_what_was_measured(case):
    assert sum(planned(*CASES[case]).values()) / 1e6 == pytest.approx(MEASURED[case], rel=device_memory.MARGIN)


@pytest.mark.skipif(not onednn.there(), reason="this CPU has no AVX-512, whose products are counted")
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
    assert liveness.planned("tiny", 32, 8, recompute) / 1e6 == pytest.approx(replayed, rel=0.25)


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
    # clipping makes a second set of them, before the first is written
    assert device_memory.update(one) == {"gradients": whole, "gradients, unscaled and clipped": whole}
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


def test_buffers_are_as_large_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("HCCL_BUFFSIZE", "120")
    assert from_params(params(), 1).hccl_buffer == 120 * 2**20


def test_states_host_and_disk():
    whole = 4 * 2_567_463_684
    assert disk.state_bytes(FULL) == 3 * whole + 4
    assert disk.state_bytes(replace(FULL, ema=True)) == 4 * whole + 4  # 41 GB
    parts = disk.disk_bytes(replace(FULL, states=2))
    assert parts["states: 2 kept and the next being written"] == 3 * (3 * whole + 4)
    assert parts["merged.ckpt and merged.safetensors"] == 2 * 2 * 3_468_837_868
    assert host.host_bytes(FULL)["weights and state, the host's side"] == 8 * (3 * whole + 4)
    assert set(host.COMPILING) == set(CONFIGS) - {"33 M"}  # that one is benchmarks/memory.py's
    two_nodes = host.host_bytes(replace(FULL, nodes=2))
    assert two_nodes["weights and state, the host's side"] == 4 * (3 * whole + 4)


def test_weights_in_between():
    """Never less than a run has at once: those that become outs, and those of steps whose state is not written yet."""
    run = replace(FULL, steps=1000, epochs=None, checkpointing_steps=300, save_interval=100)
    assert disk.between(FULL) == 0 and not any("between" in part for part in disk.disk_bytes(FULL))
    assert disk.between(run) == disk.between(replace(run, save_limit=20)) == 10
    assert disk.between(replace(run, save_limit=2)) == 2 + 3 + 1
    best = replace(run, save_interval=0, keep_best=True, validation_interval=150, save_bytes=2)
    assert disk.between(best) == 2 + 2
    assert disk.disk_bytes(best)["weights in between: 4 at most"] == 4 * 2 * 2_567_463_684
    assert host.host_bytes(run)["weights in between, until they are written"] == 4 * 2_567_463_684
    planned = from_params(params(**{"train.save_interval": 7, "train.save_limit": 3, "train.keep_best": True}), 9)
    assert (planned.save_interval, planned.save_limit, planned.save_bytes, planned.keep_best) == (7, 3, 4, True)


def test_the_place_is_looked_at(tmp_path):
    store, outs = tmp_path / "store", tmp_path / "outs"
    store.mkdir(), outs.mkdir()
    (store / "shard").write_bytes(b"x" * 40960)
    (outs / "shard").hardlink_to(store / "shard")
    place = disk.look(store, outs)
    assert 40960 <= place.used < 2 * 40960 and place.free > 0 and place.speed > 0
    assert sorted(path.name for path in store.iterdir()) == ["shard"]
    text = plan.report(FULL, disk.Place(free=10**9, used=5 * 10**9, speed=2 * 10**9))
    missing = sum(disk.disk_bytes(FULL).values()) - 6 * 10**9
    assert f"Does NOT fit this disk: {missing / 1e9:.1f} GB are missing" in text
    assert "15.4 s at the 2.00 GB/s of this disk" in text


def test_launches_bound_a_step():
    assert duration.kernels(replace(FULL, gradient_checkpointing=False)) == 15_000 + 4 * 1_680
    low, high = duration.launches(FULL)
    assert (low, high) == pytest.approx((26_720 * 5e-6, 26_720 * 10e-6))
    assert "level O2, which 2.10" in plan.report(FULL) and "0.13 to 0.27 s a step" in plan.report(FULL)
    assert duration.launches(replace(FULL, config="tiny")) is None


def test_steps_cache_and_hours():
    assert duration.steps(FULL) == 2 * 12_500
    assert disk.cache_bytes(FULL) == 100_000 * (8 * 128 * 128 * 2 + 77 * 2048 * 2 + 1280 * 4)
    best, worst = duration.hours(FULL)
    assert best == pytest.approx(25_000 * 0.53 / 3600) and worst == pytest.approx(25_000 * 1.10 / 3600)
    assert duration.hours(replace(FULL, config="tiny")) is None


def test_it_says_what_would_make_a_run_fit():
    heavy = replace(FULL, batch_size=6, gradient_checkpointing=False, shard_optimizer=True)
    assert not device_memory.fits(heavy)
    ways = device_memory.ways_to_fit(heavy)
    assert ways and all(way.startswith("train.") or way.startswith("device.") for way in ways)
    assert "train.gradient_checkpointing: true" in ways
    assert device_memory.fits(replace(heavy, gradient_checkpointing=True))
    report = plan.report(heavy)
    assert "Does NOT fit" in report and "would fit with train.gradient_checkpointing: true" in report
    # where no single setting is enough, several together are named
    (together,) = device_memory.ways_to_fit(replace(heavy, batch_size=8, resolution=2048, shard_optimizer=False))
    assert together.startswith("train.gradient_checkpointing: true and train.shard_optimizer: true")


def test_checkpointings_saving_is_not_promised():
    """Where the count fits by it alone, the plan says that no NPU has shown so."""
    run = replace(FULL, batch_size=4, shard_optimizer=True)
    assert device_memory.relies_on_checkpointing(run)
    assert "MAY fit a card" in plan.report(run) and "Fits a card" not in plan.report(run)
    assert "Fits a card" in plan.report(replace(run, batch_size=1))


def test_it_takes_params_as_they_stand():
    run = from_params(
        params(
            **{"train.batch_size": 5, "device.workers": 2, "device.nodes": 3, "train.ema": True}
            | {"device.master": "a:1"}
        ),
        77,
    )
    assert (run.batch_size, run.devices, run.ema, run.images, run.latent_channels) == (5, 6, True, 77, 8)
    assert run.target == "CPU" and "Fits this computer" in plan.report(run)
    run = from_params(params(**{"device.target": "auto"}), 77)
    assert run.target == "Ascend" and "Fits a card" in plan.report(run)


def said(capsys, *arguments: str) -> tuple[int, str]:
    """(exit code, what the command printed)"""
    try:
        plan.main(list(arguments))
        code = 0
    except SystemExit as ended:  # with a message, argparse with 2
        code = ended.code if isinstance(ended.code, int) else print(ended.code) or 1
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with params.yaml and nothing else, to run the command in."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FULL_SIZE = ["--config", "sdxl-base", "--resolution", "1024", "--devices", "8", "--batch-size", "1", "--steps", "10"]


def test_the_command(capsys, project):
    code, text = said(capsys, "--images", "1000", *FULL_SIZE, "--precision", "bfloat16")
    assert code == 0 and "10,269,854,736 bytes" in text and "Steps: 10" in text and "Hours on Ascend 910B" in text


def test_the_command_fails_when_it_does_not_fit(capsys, project):
    code, text = said(capsys, "--images", "1000", *FULL_SIZE, "--batch-size", "16")
    assert code == 1 and "Does NOT fit a card of 64 GB" in text and "would fit with" in text


def write_index(project, pictures: int, captions: int) -> None:
    """An index of so many used pictures over two buckets, each of them twice, and one more that is rejected."""
    (project / "outs/index").mkdir(parents=True)
    images = [n.to_bytes(16, "big") for n in range(pictures)]
    rows = [(image, f"{copy}.png", 64, 32 + 32 * (image[-1] % 2), None) for image in images for copy in "ab"]
    rows += [(b"x" * 16, "x.png", None, None, "too small")]
    kinds = (pa.binary(16), pa.string(), pa.int32(), pa.int32(), pa.string())
    pq.write_table(
        pa.table(
            [pa.array(column, kind) for column, kind in zip(zip(*rows), kinds)],
            ["image", "path", "bucket_width", "bucket_height", "rejected"],
        ),
        project / "outs/index/images.parquet",
    )
    names = [(n % captions).to_bytes(16, "big") for n in range(pictures)]
    columns = {"image": pa.array(images, pa.binary(16)), "caption": pa.array(names, pa.binary(16))}
    pq.write_table(pa.table(columns), project / "outs/index/captions.parquet")


def test_the_command_counts_the_index(capsys, project):
    """As docs/sdxl-on-npus.md has it: without options."""
    write_index(project, 40, 7)
    code, text = said(capsys)
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    assert code == 0 and "Caches of 40 pictures and 8 captions:" in text  # the empty one is the eighth
    assert "Graphs to compile: 5 at most, over 2 buckets" in text  # two of gradients, two of validation, the update
    counted = from_params(params(), *count_index(project / "outs/index"))
    assert disk.cache_bytes(counted) == 40 * latent + 8 * caption
    assert "Caches of 77 pictures:" in said(capsys, "--images", "77")[1]


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_the_tokens_are_those_of_the_cache(chunks):
    """Chunks share one begin and one end."""
    hidden = tokens.join_chunks(np.zeros((chunks, 77, 160), np.float16))
    run = from_params(params(**{"cache_text.chunks": chunks}), 10)
    assert disk.cache_parts(run)[1] == hidden.nbytes + 96 * 4


def test_rows_and_held_out_pictures_count():
    changes = {"cache_latents.crop": "random", "cache_latents.crops": 3, "cache_latents.flip": True}
    epochs = {"train.steps": None, "train.epochs": 2, "train.validation_share": 0.25, "train.batch_size": 10}
    latent, caption = 8 * 8 * 8 * 2, 77 * 160 * 2 + 96 * 4
    run = from_params(params(**changes | epochs), 100)
    assert disk.cache_bytes(run) == 100 * (6 * latent + caption)
    assert duration.steps(run) == 2 * 8  # of 75 pictures


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "outs/index/images.parquet is not there: run `dvc repro index`, or say how many pictures with --images"),
        (["--images", "0"], "wanted a whole number of 1 to 999,999,999,999, found '0'"),
        (["--images", "-5"], "--images"),
        (["--images", "99999999999999"], "to 999,999,999,999, found '99999999999999'"),
        (["--images", "many"], "found 'many'"),
        (["--images", "10", "--resolution", "1000"], "--resolution must be a multiple of 32, found 1000"),
        (["--images", "10", "--steps", "0"], "--steps"),
        (["--images", "10", "--config", "sd15"], "--config"),
    ],
)
def test_a_fault_is_said_without_a_traceback(capsys, project, arguments, wanted):
    code, text = said(capsys, *arguments)
    assert code == 2 and wanted in text


def test_a_broken_index_and_broken_params_are_named(capsys, project):
    write_index(project, 3, 3)
    (project / "outs/index/images.parquet").write_bytes(b"PAR1 and no more")
    code, text = said(capsys)
    assert code == 1 and "python -m pipeline plan: " in text and "arquet" in text
    (project / "params.yaml").write_text("data: 5")
    code, text = said(capsys)
    assert code == 1 and "params.yaml cannot be used as it stands" in text


def test_the_help_explains_each_option(capsys, project):
    code, text = said(capsys, "--help")
    assert code == 0 and "outs/index" in text and all(option in text for option in FULL_SIZE[::2])


def test_the_command_needs_no_mindspore():
    script = "import sys, pipeline.plan; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
