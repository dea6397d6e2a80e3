"""The UNet behind its text encoders: the same as with their results, and gradients that finite differences give."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest

from pipeline.cache.building import captions, tokens
from pipeline.cache.reading.reader import Batch
from pipeline.models.clip import ClipG, ClipL
from pipeline.models.config import TINY
from pipeline.models.encode import text_function
from pipeline.models.with_text import WithText, part_of
from pipeline.training import feed
from pipeline.training.step import SampleLoss, Settings, _ScaledLoss
from pipeline.weights.chosen import unused_parameters
from tests.models.stub_unet import StubUNet

CHUNKS = 2


@pytest.fixture(scope="module")
def network(device):
    ms.set_seed(0)
    cell = WithText(StubUNet(TINY.unet), ClipL(TINY.clip_l), ClipG(TINY.clip_g)).set_train()
    draw = np.random.default_rng(0)
    for parameter in cell.get_parameters():  # none is zero, so that each has a gradient
        values = draw.standard_normal(parameter.shape).astype(np.float32)
        parameter.set_data(ms.Tensor(0.1 * values + ("gamma" in parameter.name)))
    return cell


@pytest.fixture(scope="module")
def batch():
    draw, texts = np.random.default_rng(1), []
    for length in (5, 100, 0):
        ids = draw.integers(0, 1000, length).tolist()
        texts.append([tokens.chunk(ids, CHUNKS, 1022, 1023, pad) for pad in (1023, 0)])
    latents = draw.standard_normal((3, 8, 8, 8)).astype(np.float32)
    time_ids = draw.integers(0, 100, (3, 6)).astype(np.int32)
    return Batch(latents, None, None, time_ids, np.arange(3), None, np.array(texts, np.int32))


@pytest.fixture(scope="module")
def losses(network):
    """-> function of inputs giving the loss and the gradient of each parameter by its name, at the present weights."""
    scaled, parameters = _ScaledLoss(SampleLoss(network, Settings())), ms.ParameterTuple(network.trainable_params())
    gradients = ms.value_and_grad(scaled, None, parameters)

    def of(context, vector):
        draw = np.random.default_rng(2)
        x_t, target = draw.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
        times, weight = np.array([10, 500, 900], np.float32), np.array([1, 2, 3], np.float32)
        arrays = map(ms.Tensor, (x_t, times, context, vector, target, weight, np.float32(1)))
        loss, found = gradients(*arrays)
        return float(loss), {p.name: g.asnumpy() for p, g in zip(parameters, found, strict=True)}

    return of


def test_the_unet_has_what_the_encoders_give(network, batch, losses):
    """By the way of frozen encoders; also for a text that is left out, and for further chunks."""
    dropped = np.array([False, False, True])
    found, _ = losses(*feed.conditions(batch, dropped))
    given = np.ones(batch.ids.shape, captions.TOKEN)
    given["id"] = batch.ids
    hidden, pooled = captions.chunk_encoder(text_function(network.clip_l, network.clip_g))(given)
    context = np.stack([tokens.join_chunks(one) for one in hidden])
    frozen = Batch(batch.latents, context, pooled, batch.time_ids, batch.images)
    loss = _ScaledLoss(SampleLoss(network.unet, Settings()))
    draw = np.random.default_rng(2)
    x_t, target = draw.standard_normal((2, 3, 4, 8, 8)).astype(np.float32)
    times, weight = np.array([10, 500, 900], np.float32), np.array([1, 2, 3], np.float32)
    inputs = (x_t, times, *feed.conditions(frozen, dropped), target, weight, np.float32(1))
    np.testing.assert_allclose(found, float(loss(*map(ms.Tensor, inputs))), rtol=1e-5)


@pytest.mark.parametrize("part", ["clip_l", "clip_g"])
def test_gradients_are_those_of_finite_differences(network, batch, losses, part):
    inputs = feed.conditions(batch)
    _, gradients = losses(*inputs)
    used = [
        p for p in network.get_parameters()
        if part_of(p.name) == part and not p.name.startswith(unused_parameters(part, TINY))
    ]  # fmt: skip
    assert all(np.abs(gradients[p.name]).max() > 0 for p in used)
    before = {p.name: p.asnumpy().copy() for p in used}
    square = sum(float((gradients[p.name].astype(np.float64) ** 2).sum()) for p in used)
    step = 2e-3 / np.sqrt(square)
    ends = []
    try:
        for sign in (1, -1):
            for p in used:
                ms.ops.assign(p, ms.Tensor(before[p.name] + np.float32(sign * step) * gradients[p.name]))
            ends.append(losses(*inputs)[0])
    finally:
        for p in used:
            ms.ops.assign(p, ms.Tensor(before[p.name]))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(square, rel=0.02)


def test_what_sdxl_does_not_use_has_no_gradient(network, batch, losses):
    _, gradients = losses(*feed.conditions(batch))
    for part in ("clip_l", "clip_g"):
        unused = [
            name for name in gradients if part_of(name) == part and name.startswith(unused_parameters(part, TINY))
        ]
        assert unused and not any(gradients[name].any() for name in unused)
