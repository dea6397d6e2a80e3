"""The step's graph: against PyTorch's five steps, and what it does with overflows, accumulation and each setting."""

from collections import Counter
from pathlib import Path

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from benchmarks import kernels as benchmark
from pipeline.diffusion import conditioning, loss, schedule
from pipeline.models import forms
from pipeline.models.unet import UNet
from pipeline.training import rates
from pipeline.training.build import settings as run_settings
from pipeline.training.optimizers.adamw import AdamW
from pipeline.training.optimizers.common import decays
from pipeline.training.step import (
    Accumulate,
    Average,
    Boundary,
    Outcome,
    SampleLoss,
    Settings,
    TrainStep,
    Update,
    _Graph,
    average_of,
)
from tests.golden import objectives_rule as o
from tests.golden import rule
from tests.golden import training_rule as t
from tests.golden.compare import build, training
from tests.training.training_samples import params

pytestmark = pytest.mark.usefixtures("device")
OBJECTIVES = np.load(Path(__file__).parents[1] / "golden" / "objectives.npz")
RATE, DECAY = Tensor(1e-2, ms.float32), Tensor(0.5, ms.float32)


@pytest.fixture(scope="module")
def stepping(device, convolution):
    """The small UNet with its step: (weights at the start, the step, function of a step's number giving its inputs)."""
    unet = build(lambda: UNet(t.UNET), "model.diffusion_model.").set_train()
    parameters = unet.trainable_params()
    start = [p.asnumpy().copy() for p in parameters]
    optimizer = AdamW(parameters, decays(unet), t.WEIGHT_DECAY, *t.BETAS, t.EPSILON)
    settings = Settings(max_grad_norm=t.MAX_GRAD_NORM)
    step = TrainStep(SampleLoss(unet, settings), Update(optimizer, average_of(parameters), settings))
    alphas = schedule.alphas_cumprod(False)
    weights = loss.weights(schedule.snr(alphas), "epsilon", snr_gamma=t.SNR_GAMMA)

    def inputs(number):
        values, timesteps = t.inputs(number), t.timesteps(number)
        mixture = schedule.mixture("epsilon", timesteps, alphas)
        arrays = (
            schedule.add_noise(values["x_0"], values["noise"], *mixture),
            timesteps.astype(np.float32),
            values["context"],
            conditioning.vector(values["pooled"], values["time_ids"]),
            schedule.target("epsilon", values["x_0"], values["noise"], *mixture),
            weights[timesteps].astype(np.float32),
        )
        return list(map(Tensor, arrays))

    return start, step, inputs


def test_five_steps_equal_pytorch(stepping):
    start, step, inputs = stepping
    losses, norms = [], []
    average = Average(step.update)
    for number in range(t.STEPS):
        rate, decay = (Tensor(x, ms.float32) for x in (t.LEARNING_RATE, rates.ema_decay(number, t.EMA_DECAY)))
        outcome = step(*inputs(number), rate)
        average(outcome, decay)
        outcome = Outcome(*outcome.asnumpy())
        losses.append(outcome.loss)
        norms.append(outcome.norm)
    wanted = training()
    np.testing.assert_allclose(losses, wanted["losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, wanted["norms"], rtol=1e-4)
    parameters = step.update.parameters
    for kind, found in (("raw", parameters), ("ema", step.update.ema)):
        for parameter, before, own in zip(found, start, parameters, strict=True):
            golden = wanted[f"{kind} {rule.stability(own.name)}"]
            picked, moved = t.picked(parameter.asnumpy()), t.picked(before)
            assert np.linalg.norm(picked - golden) <= 1e-5 * np.linalg.norm(golden), own.name
            # the steps themselves agree, which are small beside the weights
            assert np.linalg.norm(picked - golden) <= 0.05 * np.linalg.norm(golden - moved), own.name


# Kernels by part, with convolutions by oneDNN and by products. Who needs more raises them, and says why.
BUDGET = {
    False: {"forward": 480, "backward": 620, "update": 622},
    True: {"forward": 600, "backward": 760, "update": 622},
}


def test_the_kernels_of_a_step_keep_to_their_budget(stepping):
    _, step, inputs = stepping
    if not step.compile_cache:
        step(*inputs(0), RATE)
    kinds = benchmark.compiled(step)
    found = Counter()
    for (part, _), count in kinds.items():
        found[part] += count
    budget = BUDGET[forms.convolves_by_products()]
    assert found.keys() == budget.keys(), found
    assert all(found[part] <= budget[part] for part in budget), benchmark.report(kinds)
    # a parameter that was read before and after its update would be copied
    assert "TensorMove" not in {kind for _, kind in kinds}
    # two a parameter that decays, one for the others
    decayed = sum(step.update.optimizer.decayed)
    assert kinds["update", "Adam"] == len(step.update.parameters)
    assert kinds["update", "ApplyProximalGradientDescent"] == decayed


def test_a_phase_is_passed_on_only_when_it_changes():
    class Doubled(_Graph):
        def __init__(self):
            super().__init__()
            self.child = nn.ReLU()

        def construct(self, x):
            return self.child(x) * 2

    cell = Doubled()
    np.testing.assert_array_equal(cell(Tensor([1.0, -1.0])).asnumpy(), [2, 0])
    assert cell.child.compile_phase == cell.compile_phase
    cell.child.compile_phase = "untouched"
    np.testing.assert_array_equal(cell(Tensor([3.0, -1.0])).asnumpy(), [6, 0])
    assert cell.child.compile_phase == "untouched"
    np.testing.assert_array_equal(cell(Tensor([1.0, -1.0, 4.0])).asnumpy(), [2, 0, 8])
    assert cell.child.compile_phase == cell.compile_phase


@pytest.mark.parametrize(
    "convolution", ["products"], indirect=True
)  # the other has the same numbers, by the five steps
def test_one_batch_can_be_learned_by_heart(stepping):
    _, step, inputs = stepping
    batch = inputs(0)
    losses = []
    for number in range(75):
        rate = rates.learning_rate(number, 75, 3e-3, "cosine", 10)
        losses.append(step(*batch, Tensor(rate, ms.float32)).asnumpy()[0])
    assert losses[-1] < 0.02 * losses[0]


class Line(nn.Cell):
    """In place of a UNet: a value per channel, times a context that may overflow."""

    def __init__(self, dtype=ms.float32):
        super().__init__()
        self.value = Parameter(Tensor(np.array([0.5, -1.0, 2.0, 0.1], np.float32).reshape(1, 4, 1, 1)), name="value")
        self.dtype = dtype

    def construct(self, x, timesteps, context, vector):
        return (
            x.astype(self.dtype) * self.value.astype(self.dtype) * context.astype(self.dtype).reshape(-1, 1, 1, 1)
        ).astype(ms.float32)


def arrays(number, b=4, context=1.0, weight=1.0):
    draw = np.random.default_rng(number)
    x, target = draw.standard_normal((2, b, 4, 2, 2)).astype(np.float32)
    zeros = np.zeros(b, np.float32)
    return x, zeros, np.full(b, context, np.float32), zeros, target, np.full(b, weight, np.float32)


def parts(settings, dtype=ms.float32, optimizer=None):
    line = Line(dtype)
    optimizer = optimizer or AdamW([line.value], (True,), 0.0, 0.9, 0.999, 1e-8)
    update = Update(optimizer, average_of([line.value]), settings)
    return line, update, SampleLoss(line, settings)


def run(step, values, average=None):
    outcome = step(*map(Tensor, values), RATE)
    if average:
        average(outcome, DECAY)
    return outcome.asnumpy().tolist()


def test_an_overflowed_step_is_skipped_and_halves_the_scale():
    settings = Settings(loss_scale=1024.0, max_grad_norm=1.0)
    line, update, sample_loss = parts(settings, ms.float16)
    step, average = TrainStep(sample_loss, update), Average(update)
    assert run(step, arrays(0), average)[2]
    state = [p.asnumpy().copy() for p in (line.value, *update.ema, *update.optimizer.moment1, update.optimizer.updates)]
    finite = run(step, arrays(1, context=60000.0), average)[2]
    assert not finite and update.loss_scale.asnumpy() == 512 and update.good_steps.asnumpy() == 0
    for before, after in zip(
        state, (line.value, *update.ema, *update.optimizer.moment1, update.optimizer.updates), strict=True
    ):
        np.testing.assert_array_equal(before, after.asnumpy())
    assert run(step, arrays(2))[2] and update.optimizer.updates.asnumpy() == 2 and update.good_steps.asnumpy() == 1


def test_many_good_steps_double_the_scale(monkeypatch):
    monkeypatch.setattr("pipeline.training.step.GROWTH_STEPS", 3)
    line, update, sample_loss = parts(Settings(loss_scale=1024.0), ms.float16)
    step = TrainStep(sample_loss, update)
    scales = []
    for number in range(4):
        run(step, arrays(number))
        scales.append(update.loss_scale.asnumpy().item())
    assert scales == [1024, 1024, 2048, 2048] and update.good_steps.asnumpy() == 1


def test_the_loss_scale_changes_no_number():
    found = []
    for scale in (None, 2.0**12):
        line, update, sample_loss = parts(Settings(loss_scale=scale))
        found.append([run(TrainStep(sample_loss, update), arrays(0))[:3], line.value.asnumpy().ravel()])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


@pytest.mark.parametrize("loss_scale", [None, 256.0])
def test_accumulated_micro_batches_equal_one_large_batch(loss_scale):
    whole, micro = (
        Settings(max_grad_norm=0.1, loss_scale=loss_scale),
        Settings(max_grad_norm=0.1, loss_scale=loss_scale, gradient_accumulation_steps=2),
    )
    line, update, sample_loss = parts(whole)
    step = TrainStep(sample_loss, update)
    other, other_update, other_loss = parts(micro)
    accumulate = Accumulate(other_loss, other_update)
    boundary = Boundary(accumulate, other_update)
    average, other_average = Average(update), Average(other_update)
    for number in range(3):
        values = arrays(number, b=6)
        wanted = run(step, values, average)
        for half in (slice(0, 3), slice(3, 6)):
            accumulate(*(Tensor(value[half]) for value in values))
        found = boundary(RATE)
        other_average(found, DECAY)
        found = found.asnumpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        np.testing.assert_allclose(other.value.asnumpy(), line.value.asnumpy(), rtol=1e-5)
        np.testing.assert_allclose(other_update.ema[0].asnumpy(), update.ema[0].asnumpy(), rtol=1e-5)


def test_the_loss_is_weighted_by_sample():
    values = arrays(0)
    weight = np.array([0.0, 2.0, 1.0, 1.0], np.float32)
    line, update, sample_loss = parts(Settings())
    losses = ((values[0] * line.value.asnumpy() - values[4]) ** 2).mean((1, 2, 3))
    assert run(TrainStep(sample_loss, update), (*values[:5], weight))[0] == pytest.approx(
        (losses * weight).mean(), rel=1e-5
    )


@pytest.mark.parametrize("settings", [Settings(), Settings(loss_type="huber", huber_c=0.1)])
def test_the_loss_is_weighted_by_latent_pixel(settings):
    values = arrays(0)
    weight = np.random.default_rng(1).uniform(0, 2, (4, 1, 2, 2)).astype(np.float32)
    line, update, sample_loss = parts(settings)
    d = values[0] * line.value.asnumpy() - values[4]
    losses = d**2 if settings.loss_type == "l2" else 0.2 * (np.sqrt(d**2 + 0.01) - 0.1)
    found = run(TrainStep(sample_loss, update), (*values[:5], weight))
    assert found[0] == pytest.approx((losses * weight).mean(), rel=1e-5)
    slope = 2 * d if settings.loss_type == "l2" else 0.2 * d / np.sqrt(d**2 + 0.01)
    gradient = (slope * values[0] * weight).sum((0, 2, 3)) / d.size
    assert found[1] == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-4)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_the_huber_loss_is_the_papers(c):
    values = arrays(0)
    line, _, sample_loss = parts(Settings(loss_type="huber", huber_c=c))
    d = values[0] * line.value.asnumpy() - values[4]
    wanted = (2 * c * (np.sqrt(d**2 + c**2) - c)).mean((1, 2, 3))  # arXiv 2403.16728, eq. 9
    np.testing.assert_allclose(sample_loss(*map(Tensor, values[:5])).asnumpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("name, rescaled", [("exponential", False), ("snr", False), ("snr", True)])
def test_the_huber_loss_with_a_schedule_is_kohyas(device, name, rescaled):
    keys = {"train.loss_type": "huber", "train.huber_c": o.HUBER_C, "train.huber_schedule": name}
    p = params(**keys, **{"diffusion.prediction": "v", "diffusion.zero_terminal_snr": rescaled})
    settings = run_settings(device, p.diffusion, p.train)
    predicted, target = o.errors()
    line, _, sample_loss = parts(settings)
    line.value.set_data(Tensor(np.ones(line.value.shape, np.float32)))
    inputs = predicted, o.HUBER_TIMESTEPS.astype(np.float32), np.ones(4, np.float32), np.zeros(4, np.float32), target
    wanted = OBJECTIVES[f"huber_{name}" + "_rescaled" * rescaled]
    np.testing.assert_allclose(sample_loss(*map(Tensor, inputs)).asnumpy(), wanted, rtol=1e-4)


def test_all_that_a_graph_touches_is_the_cells_own():
    """MindSpore's compile cache gives a graph copies of parameters that its cell does not hold."""
    settings = Settings(gradient_accumulation_steps=2, loss_scale=2.0)
    line, update, sample_loss = parts(settings)
    accumulate = Accumulate(sample_loss, update)
    for cell in (TrainStep(sample_loss, update), accumulate):
        assert {line.value.name, "loss_scale"} <= {p.name for p in cell.get_parameters()}
    state = {
        p.name
        for p in (
            *update.optimizer.moment1,
            *update.optimizer.moment2,
            *accumulate.totals,
            accumulate.loss,
        )
    }
    state |= {"updates", "loss_scale", "good_steps", "taken", "overflows", line.value.name}
    assert state <= {p.name for p in Boundary(accumulate, update).get_parameters()}
    assert {line.value.name, update.ema[0].name} <= {p.name for p in Average(update).get_parameters()}
