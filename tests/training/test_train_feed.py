"""What a step is fed: every sample once an epoch, the same on any ranks, and the numbers of each input."""

import itertools

import numpy as np
import pytest

from pipeline.cache.reading.reader import Reader
from pipeline.diffusion import conditioning, draws, noise, schedule
from pipeline.stage import StageError
from pipeline.training import feed
from tests.cache.cache_samples import latent, write_samples
from tests.training.training_samples import images, mask, masked_latent, write_workspace

SCALE = 0.13025
ALPHAS = schedule.alphas_cumprod(False)


def objective(**changes):
    settings = {
        "seed": 3,
        "prediction": "epsilon",
        "scaling_factor": SCALE,
        "alphas": ALPHAS,
        "chances": np.full(1000, 1e-3),
        "weights": np.ones(1000),
    }
    return feed.Objective(**(settings | changes))


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = write_workspace(tmp_path_factory.mktemp("feed"), count=21, buckets=((64, 64), (64, 32))) / "outs"
    return Reader(root / "latents", root / "text", root / "index/samples.parquet")


def make(reader, rank=0, ranks=1, batch_size=4, accumulation=1, first=0, end=14, **changes):
    return feed.Steps(
        reader, objective(**changes), np.arange(reader.n), first, end, batch_size, accumulation, rank, ranks
    )


def test_every_sample_is_seen_once_an_epoch_in_a_new_order(reader):
    steps = make(reader)
    per_epoch = feed.epochs(reader, np.arange(reader.n), 0, 4).start(1)
    assert per_epoch == 6  # 11 and 10 pictures of two buckets, in batches of 4
    epochs = [[s for step in range(e * 6, e * 6 + 6) for s in steps.samples(step) if s >= 0] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(21))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("ranks", "batch_size", "accumulation"), [(2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2)])
def test_ranks_and_micro_batches_divide_the_same_batches(reader, ranks, batch_size, accumulation):
    whole = make(reader, noise_offset=0.1, caption_dropout=0.3)
    parts = [
        make(reader, rank, ranks, batch_size, accumulation, noise_offset=0.1, caption_dropout=0.3)
        for rank in range(ranks)
    ]
    for index in range(6):
        wanted = whole[index].micro_batches[0]
        found = [micro for part in parts for micro in part[index].micro_batches]
        real = whole[index].samples >= 0
        for position, array in enumerate(wanted.arrays()):
            joined = np.concatenate([micro.arrays()[position] for micro in found])
            assert joined.dtype == array.dtype and np.array_equal(joined[real], array[real])
        assert (np.concatenate([micro.weight for micro in found])[~real] == 0).all()


def test_a_step_is_a_function_of_its_number(reader):
    late = make(reader, first=9)
    for array, other in zip(late[2].micro_batches[0].arrays(), make(reader)[11].micro_batches[0].arrays(), strict=True):
        assert np.array_equal(array, other)
    assert len(late) == 5
    with pytest.raises(IndexError):
        late[5]


def test_the_inputs_of_a_step(reader):
    step = make(reader)[0]
    inputs, samples = step.micro_batches[0], step.samples
    real = np.flatnonzero(samples >= 0)
    batch = reader.read(np.where(samples >= 0, samples, samples[real[0]]), epoch=0, seed=3)
    mean, logvar = np.split(batch.latents.astype(np.float64), 2, axis=1)
    added = np.stack(
        [draws.generator(3, draws.NOISE, 0, int(s)).standard_normal(mean.shape[1:], dtype=np.float32) for s in samples]
    )
    posterior = np.stack(
        [
            draws.generator(3, draws.POSTERIOR, 0, int(s)).standard_normal(mean.shape[1:], dtype=np.float32)
            for s in samples
        ]
    )
    x_0 = SCALE * (mean + np.exp(logvar / 2) * posterior)
    assert inputs.timesteps.dtype == np.float32
    a = ALPHAS[inputs.timesteps.astype(int)].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(inputs.x_t[real], (np.sqrt(a) * x_0 + np.sqrt(1 - a) * added)[real], atol=1e-5)
    np.testing.assert_array_equal(inputs.target, added)
    np.testing.assert_array_equal(inputs.context, batch.context.astype(np.float32))
    np.testing.assert_array_equal(inputs.vector, conditioning.vector(batch.pooled, batch.time_ids))
    np.testing.assert_allclose(inputs.weight[real], 4 / len(real))


def test_the_inputs_of_a_step_of_flow(reader):
    """The same noise, latents and draws as with epsilon, in another mixture, and timesteps with fractions."""
    plain, flow = make(reader)[0].micro_batches[0], make(reader, prediction="flow")[0].micro_batches[0]
    added, a = plain.target, ALPHAS[plain.timesteps.astype(int)].reshape(-1, 1, 1, 1)
    x_0 = (plain.x_t - np.sqrt(1 - a) * added) / np.sqrt(a)
    assert (np.floor(flow.timesteps) == plain.timesteps).all() and (flow.timesteps % 1 > 0).all()
    t = flow.timesteps.reshape(-1, 1, 1, 1) / 1000
    np.testing.assert_allclose(flow.x_t, (1 - t) * x_0 + t * added, atol=1e-4)
    np.testing.assert_allclose(flow.target, added - x_0, atol=1e-4)
    np.testing.assert_array_equal(flow.weight, plain.weight)


def test_the_posterior_is_drawn_anew_at_each_step():
    batch = type(
        "Batch", (), {"latents": np.concatenate([np.ones((2, 4, 3, 3)), np.zeros((2, 4, 3, 3))], 1).astype(np.float16)}
    )
    draw = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(feed.latents(batch, draw, 0.5), 0.5 * (1 + draw), rtol=1e-6)
    np.testing.assert_allclose(feed.latents(batch, None, 0.5), 0.5)
    batch.latents = batch.latents[:, :4] * 3
    np.testing.assert_allclose(feed.latents(batch, None, 0.5), 1.5)
    np.testing.assert_allclose(feed.latents(batch, None, 0.5, shift_factor=-1.0), 2.0)


def test_the_vaes_shift_is_taken_off_before_the_scale(reader):
    """As diffusers' pipelines have it: (latents - shift_factor) * scaling_factor."""
    found = [
        make(reader, prediction="flow", **scale)[0].micro_batches[0].target
        for scale in ({}, {"scaling_factor": 2.0}, {"scaling_factor": 2.0, "shift_factor": 0.25})
    ]
    z = (make(reader)[0].micro_batches[0].target - found[0]) / SCALE
    np.testing.assert_allclose(found[0] - found[1], (2 - SCALE) * z, atol=1e-4)
    np.testing.assert_allclose(found[2] - found[1], 0.5, atol=1e-4)


def test_the_noise_offset_is_one_value_per_sample_and_channel(reader):
    plain, offset = make(reader)[0].micro_batches[0], make(reader, noise_offset=0.5)[0].micro_batches[0]
    added = offset.target - plain.target
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :, :1, :1], added.shape), atol=1e-6)
    wanted = 0.5 * draws.normal(3, draws.OFFSET, 0, make(reader).samples(0), (4,))
    np.testing.assert_allclose(added[:, :, 0, 0], wanted, atol=1e-6)


def test_a_perturbation_is_in_the_input_and_not_in_the_target(reader):
    plain, other = make(reader)[0].micro_batches[0], make(reader, input_perturbation=0.5)[0].micro_batches[0]
    np.testing.assert_array_equal(other.target, plain.target)
    strength = np.sqrt(1 - ALPHAS[plain.timesteps.astype(int)]).reshape(-1, 1, 1, 1)
    wanted = 0.5 * draws.normal(3, draws.PERTURBATION, 0, make(reader).samples(0), plain.target.shape[1:])
    np.testing.assert_allclose((other.x_t - plain.x_t) / strength, wanted, atol=1e-4)


def test_noise_at_several_resolutions_is_in_the_input_and_in_the_target(reader):
    settings = {"multires_noise_iterations": 6, "multires_noise_discount": 0.4}
    plain, other = make(reader)[0].micro_batches[0], make(reader, **settings)[0].micro_batches[0]
    samples = make(reader).samples(0)
    np.testing.assert_array_equal(other.target, noise.pyramid(plain.target, 6, 0.4, 3, 0, samples))
    strength = np.sqrt(1 - ALPHAS[plain.timesteps.astype(int)]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose((other.x_t - plain.x_t) / strength, other.target - plain.target, atol=1e-3)


def test_dropped_captions(reader):
    steps = {kind: make(reader, end=30, caption_dropout=0.4, caption_dropout_with=kind) for kind in ("zeros", "empty")}
    empty = reader.read(np.array([0]), 0, 0, np.array([True]))
    dropped = total = 0
    for index in range(30):
        zeros, other = (steps[kind][index].micro_batches[0] for kind in ("zeros", "empty"))
        gone = (zeros.context == 0).all((1, 2))
        assert ((zeros.vector[:, :6] == 0).all(1) == gone).all() and (zeros.vector[:, 6:] != 0).any(1).all()
        assert ((other.context == empty.context.astype(np.float32)).all((1, 2)) == gone).all()
        assert np.array_equal(zeros.context[~gone], other.context[~gone])
        dropped, total = dropped + gone.sum(), total + len(gone)
    assert dropped / total == pytest.approx(0.4, abs=0.15)


def test_what_is_not_finite_is_named(tmp_path):
    def broken(image, bucket):
        row = latent(image, bucket)
        values = np.frombuffer(row["latent"], np.float16).copy()
        values[0] = np.inf
        return row | {"latent": values.tobytes()}

    root = write_workspace(tmp_path, count=3, rows=broken) / "outs"
    with Reader(root / "latents", root / "text", root / "index/samples.parquet") as bad:
        with pytest.raises(StageError, match=rf"step 0: .*{bad.names[0].tobytes().hex()} \(number 0\).*not finite"):
            feed.micro_batch(bad, objective(), np.array([0]), 0, 0, 0, 1, 1)()


def test_reading_ahead_gives_all_items_in_order_and_raises_what_they_raise():
    assert list(feed.ahead(range(50))) == list(range(50))

    def failing():
        yield 1
        raise KeyError("here")

    items = feed.ahead(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="here"):
        next(items)


def test_reading_ahead_ends_with_its_reader():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    items = feed.ahead(endless(), depth=2)
    assert next(items) == 0
    items.close()
    count = len(made)
    assert count <= 5
    assert len(made) == count


@pytest.fixture(scope="module")
def with_sets(tmp_path_factory):
    """Six pictures: the first three times an epoch, the second every other epoch, the third at half the loss and always
    without its caption."""
    root = write_workspace(tmp_path_factory.mktemp("sets"), count=6) / "outs"
    write_samples(
        root / "index/samples.parquet",
        [(image, f"picture {n}") for n, image in enumerate(images(6))],
        repeats=[3, 0.5, 1, 1, 1, 1],
        loss_weight=[1, 1, 0.5, 1, 1, 1],
        caption_dropout=[None, None, 1, None, None, None],
    )
    with Reader(root / "latents", root / "text", root / "index/samples.parquet") as reader:
        place = [reader.names.tolist().index(list(image)) for image in images(6)]
        yield reader, place


def test_repeats_are_seen_with_noise_of_their_own_and_broken_ones_over_epochs(with_sets):
    reader, place = with_sets
    steps = make(reader, end=24)
    found = [[], []]
    for index in range(len(steps)):
        step = steps[index]
        epoch = steps.epochs.of(step.number)
        if epoch < 2:
            found[epoch] += step.samples[step.samples >= 0].tolist()
        (inputs,) = step.micro_batches
        mine = np.flatnonzero(step.samples % reader.n == place[0])
        for one, other in itertools.pairwise(mine.tolist()):
            assert step.samples[one] != step.samples[other]
            assert not np.array_equal(inputs.target[one], inputs.target[other])  # the noise
    for numbers in found:
        times = np.bincount(np.array(numbers) % reader.n, minlength=reader.n)
        assert times[place[0]] == 3 and (times[place[2:]] == 1).all()
    both = np.bincount(np.concatenate(found).astype(int) % reader.n, minlength=reader.n)
    assert both[place[1]] == 1


def test_the_loss_weight_and_caption_dropout_of_a_set(with_sets):
    reader, place = with_sets
    steps = make(reader, end=24)
    for index in range(len(steps)):
        step = steps[index]
        (inputs,) = step.micro_batches
        real = step.samples >= 0
        mine = real & (step.samples % reader.n == place[2])
        others = real & ~mine
        usual = inputs.weight[others]
        assert len(set(usual.tolist())) <= 1
        assert not len(usual) or (inputs.weight[mine] * 2 == usual[0]).all()
        assert (inputs.context[mine] == 0).all() and all(one.any() for one in inputs.context[others])


def test_masks_weigh_the_pixels_and_the_rest_counts_the_floor(reader, tmp_path):
    root = write_workspace(tmp_path, count=21, buckets=((64, 64), (64, 32)), rows=masked_latent) / "outs"
    with Reader(root / "latents", root / "text", root / "index/samples.parquet") as masked:
        rows = {image: masked_latent(image, ((64, 64), (64, 32))[n % 2]) for n, image in enumerate(images(21))}
        seen = set()
        for index in range(6):
            plain = make(reader, weights=np.linspace(0.5, 2, 1000))[index].micro_batches[0]
            step = make(masked, weights=np.linspace(0.5, 2, 1000), mask_floor=0.25)[index]
            found = step.micro_batches[0]
            for place, array in enumerate(plain.arrays()[:5]):
                assert np.array_equal(array, found.arrays()[place])
            assert found.weight.dtype == np.float32 and found.weight.shape == (4, 1, *found.x_t.shape[2:])
            for sample, weight, of_sample in zip(step.samples, found.weight[:, 0], plain.weight, strict=True):
                row = rows[masked.names[sample].tobytes()] if sample >= 0 else {}
                share = np.maximum(mask(row) / 255, 0.25) if "mask" in row else np.ones_like(weight)
                np.testing.assert_allclose(weight, of_sample * share, rtol=1e-6)
                seen.add(("mask" in row, sample >= 0))
        assert len(seen) == 3
