"""The planner's bytes against what MindSpore allocates for the tiny UNet, and its advice."""

from dataclasses import replace

import pipeline.device  # noqa: F401  (before MindSpore)
import mindspore as ms
import pytest
from pipeline.models.load import load_weights
from pipeline.models.unet import UNet
from pipeline.training.optimizer import Adafactor, AdamW, decays
from pipeline.training.step import average_of

from pipeline import plan
from pipeline.models.config import TINY
from pipeline.training import memory
from pipeline.weights import ckpt
from pipeline.weights.names import PREFIX
from tests.training_samples import params

SHAPES = plan.unet_shapes("tiny")
FULL = plan.Run(
    config="sdxl-base", images=100_000, resolution=1024, devices=8, batch_size=1, accumulation=1, steps=None, epochs=2,
    precision="bfloat16", param_fp16=False, optimizer="adamw", shard_optimizer=False, ema=False,
    gradient_checkpointing=True,
    attention="tiled", latent_channels=8, chunks=1,
)  # fmt: skip


def nbytes(parameters) -> int:
    return sum(p.asnumpy().nbytes for p in parameters)


@pytest.fixture(scope="module")
def unet(device):
    return UNet(TINY.unet)


def test_parameters_are_those_that_are_allocated(unet, tmp_path):
    assert memory.parameters(SHAPES, False) == nbytes(unet.get_parameters())
    path = tmp_path / "unet.ckpt"
    with ckpt.Writer(path) as writer:
        for p in unet.get_parameters():
            writer.add(PREFIX["unet"] + p.name, p.asnumpy())
    half = UNet(TINY.unet)
    load_weights(half, path, PREFIX["unet"], ms.float16)
    assert memory.parameters(SHAPES, True) == nbytes(half.get_parameters())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_optimizer_is_what_is_allocated(unet, ranks):
    adamw = AdamW(unet.trainable_params(), decays(unet), 0.01, 0.9, 0.999, 1e-8, rank=0, ranks=ranks)
    assert memory.optimizer(SHAPES, "adamw", ranks) == nbytes((*adamw.moment1, *adamw.moment2, adamw.updates))
    whole = memory.optimizer(SHAPES, "adamw", 1)
    assert memory.optimizer(SHAPES, "adamw", ranks) == pytest.approx(whole / ranks, rel=0.02)


def test_adafactor_and_ema_are_what_is_allocated(unet):
    adafactor = Adafactor(unet.trainable_params(), decays(unet), 0.01)
    assert memory.optimizer(SHAPES, "adafactor", 1) == nbytes((*adafactor.rows, *adafactor.columns, adafactor.updates))
    assert memory.ema(SHAPES) == nbytes(average_of(unet.trainable_params()))


def test_the_full_size_has_sdxls_parameters():
    parts = plan.device_bytes(FULL)
    assert parts["parameters"] == 2_567_463_684 * 4
    assert parts["optimizer"] == 2_567_463_684 * 8 + 4


@pytest.mark.parametrize(
    ("change", "part", "grows"),
    [
        ({"batch_size": 2}, "activations (estimated)", True),
        ({"resolution": 2048}, "activations (estimated)", True),
        ({"gradient_checkpointing": False}, "activations (estimated)", True),
        ({"precision": "float32"}, "activations (estimated)", True),
        ({"attention": "plain"}, "activations (estimated)", True),
        ({"shard_optimizer": True}, "optimizer", False),
        ({"optimizer": "adafactor"}, "optimizer", False),
        ({"accumulation": 2}, "gradients", True),
        ({"precision": "float16", "param_fp16": True}, "parameters", False),
    ],
)
def test_what_changes_which_part(change, part, grows):
    before, after = plan.device_bytes(FULL)[part], plan.device_bytes(replace(FULL, **change))[part]
    assert (after > before) is grows and after != before


def test_steps_cache_and_hours():
    assert plan.steps(FULL) == 2 * 12_500
    assert plan.cache_bytes(FULL) == 100_000 * (8 * 128 * 128 * 2 + 77 * 2048 * 2 + 1280 * 4)
    best, worst = plan.hours(FULL)
    assert best == pytest.approx(25_000 * 0.53 / 3600) and worst == pytest.approx(25_000 * 1.10 / 3600)
    assert plan.hours(replace(FULL, config="tiny")) is None


def test_it_says_what_would_make_a_run_fit():
    heavy = replace(FULL, batch_size=6, precision="float32", gradient_checkpointing=False)
    assert not plan.fits(heavy)
    ways = plan.ways_to_fit(heavy)
    assert ways and all(way.startswith("train.") or way.startswith("device.") for way in ways)
    assert "train.gradient_checkpointing: true" in ways
    assert plan.fits(replace(heavy, gradient_checkpointing=True))
    report = plan.report(heavy)
    assert "Does NOT fit" in report and "would fit with train.gradient_checkpointing: true" in report
    # where no single setting is enough, several together are named
    together = plan.ways_to_fit(replace(heavy, batch_size=8, resolution=2048, ema=True))
    assert together == [] or " and " in together[0]


def test_it_takes_params_as_they_stand():
    run = plan.from_params(
        params(**{"train.batch_size": 5, "device.workers": 2, "device.nodes": 3, "train.ema": True}), 77
    )
    assert (run.batch_size, run.devices, run.ema, run.images, run.latent_channels) == (5, 6, True, 77, 8)
    assert "Fits a card" in plan.report(run)


def test_the_command(capsys):
    plan.main(
        [
            "--images",
            "1000",
            "--config",
            "sdxl-base",
            "--resolution",
            "1024",
            "--devices",
            "8",
            "--batch-size",
            "4",
            "--steps",
            "10",
        ]
    )
    said = capsys.readouterr().out
    assert "10,269,854,736 bytes" in said and "Steps: 10" in said and "Hours on Ascend 910B" in said
