"""The held-out part and its loss."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from pipeline.cache.reading.reader import Reader
from pipeline.diffusion import draws, schedule
from pipeline.models.layers import norm_parameters
from pipeline.training import data, feed, validation
from pipeline.training.compiled import Compiler
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.common import decays
from pipeline.training.step import Settings, Update, average_of
from tests.models.stub_unet import StubUNet
from tests.training.training_samples import UNET, images, mask, masked_latent, write_workspace

ALPHAS = schedule.alphas_cumprod(False)


def names(count):
    return np.sort(np.frombuffer(b"".join(images(count)), "S16")).view(np.uint8).reshape(-1, 16)


def test_a_share_is_held_out_and_nothing_is_in_both():
    found = names(4000)
    train, held_out = data.split(found, 0.1)
    assert sorted([*train, *held_out]) == list(range(4000))
    assert len(held_out) == pytest.approx(400, abs=60)
    assert len(data.split(found, 0.0)[1]) == 0


def test_more_pictures_move_none_of_the_others():
    few, many = names(300), names(900)
    chosen = {row.tobytes() for row in many[data.split(many, 0.2)[1]]}
    assert {row.tobytes() for row in few[data.split(few, 0.2)[1]]} == {row.tobytes() for row in few} & chosen


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("validation"), count=11, buckets=((64, 64), (64, 32))) / "outs"
    return Reader(root / "latents", root / "text", root / "index/samples.parquet")


def test_the_sum_is_over_each_sample_once_with_noise_of_its_own(reader):
    held_out = np.array([0, 2, 3, 5, 6, 8, 10])
    grid = validation.Grid([100, 900], "epsilon", ALPHAS, 0.5)

    def loss(x_t, t, context, vector, target):
        return ((x_t - target) ** 2).mean((1, 2, 3))

    wanted = np.zeros(2)
    for sample in held_out:
        batch = reader.read(np.array([sample]), 0, 0)
        x_0 = feed.latents(batch, None, 0.5)
        key = int.from_bytes(reader.names[sample].tobytes()[:8], "little")
        for place, t in enumerate(grid.timesteps):
            noise = draws.normal(0, draws.VALIDATION, t, np.array([key], np.uint64), x_0.shape[1:])
            x_t = np.sqrt(ALPHAS[t]) * x_0 + np.sqrt(1 - ALPHAS[t]) * noise
            wanted[place] += ((x_t - noise) ** 2).mean()
    for size in (1, 3, 4):
        found = validation.losses(loss, reader, held_out, grid, size, 0, 1)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
    parts = [validation.losses(loss, reader, held_out, grid, 2, rank, 3) for rank in range(3)]
    np.testing.assert_allclose(sum(parts), wanted, rtol=1e-5)
    other = validation.losses(loss, reader, held_out, validation.Grid([100, 900], "v", ALPHAS, 0.5), 4, 0, 1)
    assert not np.allclose(other, wanted, rtol=1e-2)


@pytest.mark.parametrize(("shift", "moved"), [(1.0, [100, 900]), (3.0, [250, 27000 / 28])])
def test_a_grid_of_flow_has_its_mixtures_and_its_target(reader, shift, moved):
    """At the times of SD3's equation 23, 3 t / (1 + 2 t)."""
    held_out = np.array([3])

    def loss(x_t, t, context, vector, target):
        assert t.dtype == np.float32
        time = t.reshape(-1, 1, 1, 1) / 1000
        return np.abs(x_t - time * target - x_0).max((1, 2, 3)) + t

    x_0 = feed.latents(reader.read(held_out, 0, 0), None, 0.5, 0.25)
    grid = validation.Grid([100, 900], "flow", ALPHAS, 0.5, 0.25, flow_shift=shift)
    np.testing.assert_allclose(validation.losses(loss, reader, held_out, grid, 1, 0, 1), moved, atol=1e-4)


def test_the_loss_is_weighted_by_the_masks(tmp_path):
    root = write_workspace(tmp_path, count=9, rows=masked_latent) / "outs"
    rows = {image: masked_latent(image, (64, 64)) for image in images(9)}

    def loss(x_t, t, context, vector, target, weight):
        return ((x_t - target) ** 2 * weight).mean((1, 2, 3))

    def one(x_t, t, context, vector, target, weight):
        return ((x_t - target) ** 2 * np.ones_like(weight)).mean((1, 2, 3))

    with Reader(root / "latents", root / "text", root / "index/samples.parquet") as reader:
        held_out = np.arange(9)
        for floor in (0.0, 0.5):
            grid = validation.Grid([100, 900], "epsilon", ALPHAS, 0.5, mask_floor=floor)
            wanted = 0
            for sample in held_out:
                row = rows[reader.names[sample].tobytes()]
                share = np.maximum(mask(row) / 255, floor) if "mask" in row else 1.0

                def shared(*arrays, share=share):
                    return ((arrays[0] - arrays[4]) ** 2 * share).mean((1, 2, 3))

                wanted = wanted + validation.losses(shared, reader, np.array([sample]), grid, 1, 0, 1)
            for size in (2, 4):
                np.testing.assert_allclose(
                    validation.losses(loss, reader, held_out, grid, size, 0, 1), wanted, rtol=1e-5
                )
            assert not np.allclose(validation.losses(one, reader, held_out, grid, 2, 0, 1), wanted, rtol=1e-2)


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
def test_the_averages_have_their_loss_and_the_weights_come_back_bit_for_bit(device, reader, dtype):
    unet = StubUNet(UNET)
    weights = unet.trainable_params()
    averages = average_of(weights)
    for number, (weight, average) in enumerate(zip(weights, averages, strict=True)):
        draw = np.random.default_rng(number)
        weight.set_dtype(ms.float32 if weight.name in norm_parameters(unet) else dtype)
        weight.set_data(ms.Tensor(draw.standard_normal(weight.shape, np.float32)).astype(weight.dtype))
        average.set_data(ms.Tensor(draw.standard_normal(weight.shape, np.float32)))
    update = Update(AdamW(weights, decays(unet), 0.0, 0.9, 0.999, 1e-8), averages, Settings())
    held_out = np.flatnonzero((reader.buckets == reader.buckets[0]).all(1))[:3]
    arguments = reader, held_out, validation.Grid([100, 900], "epsilon", ALPHAS, 0.5), 2

    def bits():
        return [weight.asnumpy().tobytes() for weight in weights]

    compiler, before = Compiler(None, device, 6), bits()
    validate = validation.validator(unet, update, compiler, *arguments, device)
    found = validate()
    assert bits() == before and validate() == found
    for weight, average in zip(weights, averages, strict=True):
        weight.set_data(average.value().astype(weight.dtype))
    losses = validation.losses(validation.Evaluator(unet, compiler), *arguments, 0, 1) / len(held_out)
    assert found["validation/ema_loss"] == losses.mean() != found["validation/loss"]
