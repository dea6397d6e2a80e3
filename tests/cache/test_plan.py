"""The order of an epoch."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.reading.plan import Epochs, counts, epoch_plan

SIZES = np.array([(64, 64), (96, 32), (32, 96)], np.int32)
ONCE = np.ones(1000)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=80),
    st.integers(1, 16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
)
def test_every_sample_once_and_one_bucket_a_batch(kinds, global_batch, seed, epoch):
    buckets = SIZES[kinds]
    subset = np.arange(len(kinds))[::2] if len(kinds) > 1 else np.arange(1)
    plan = epoch_plan(buckets, ONCE[: len(buckets)], subset, seed, epoch, global_batch)
    assert plan.shape[1] == global_batch
    assert sorted(plan[plan >= 0].tolist()) == subset.tolist()
    for batch in plan:
        real = batch[batch >= 0]
        assert len(real) and (buckets[real] == buckets[real[0]]).all()
    counts = [int((np.array(kinds)[subset] == kind).sum()) for kind in range(3)]
    assert len(plan) == sum(-(-count // global_batch) for count in counts)


def test_the_order_is_a_function_of_seed_and_epoch():
    buckets = SIZES[np.arange(300) % 3]
    subset = np.arange(300)
    first = epoch_plan(buckets, ONCE[: len(buckets)], subset, 7, 0, 8)
    assert np.array_equal(first, epoch_plan(buckets, ONCE[: len(buckets)], subset, 7, 0, 8))
    assert not np.array_equal(first, epoch_plan(buckets, ONCE[: len(buckets)], subset, 7, 1, 8))
    assert not np.array_equal(first, epoch_plan(buckets, ONCE[: len(buckets)], subset, 8, 0, 8))


def test_batches_of_different_buckets_are_mixed():
    plan = epoch_plan(SIZES[np.arange(600) % 3], ONCE[:600], np.arange(600), 0, 0, 10)
    kinds = (plan.max(axis=1) % 3).tolist()
    assert sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) > 20  # sorted by bucket there would be 2


def test_each_position_is_equally_likely():
    """Chi-squared over where sample 0 lands in 4,000 epochs of 10: 9 degrees of freedom, 27.9 is its 0.1 % point."""
    buckets = SIZES[np.zeros(10, int)]
    plans = (epoch_plan(buckets, ONCE[:10], np.arange(10), 3, epoch, 10) for epoch in range(4000))
    places = [int(np.flatnonzero(plan[0] == 0)[0]) for plan in plans]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9


def test_an_empty_subset_has_no_batches():
    assert epoch_plan(SIZES, ONCE[:3], np.array([], np.int64), 0, 0, 4).shape == (0, 4)


REPEATS = st.one_of(st.integers(0, 4).map(float), st.floats(0, 3), st.sampled_from([0.1, 0.5, 1 / 3, 2.5]))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), REPEATS), min_size=1, max_size=40),
    st.integers(1, 16),
    st.integers(0, 2**64 - 1),
)
def test_every_sample_as_often_as_it_repeats(samples, global_batch, seed):
    """Whole numbers in each epoch, broken ones over epochs; over all ranks, since the batch is over all of them."""
    buckets, repeats = SIZES[[kind for kind, _ in samples]], np.array([often for _, often in samples])
    subset, n = np.arange(len(samples)), len(samples)
    total = np.zeros(n)
    epochs = Epochs(buckets, repeats, subset, seed, global_batch) if repeats.sum() >= 1 else None
    for epoch in range(6):
        plan = epoch_plan(buckets, repeats, subset, seed, epoch, global_batch)
        if epochs:
            assert epochs.start(epoch + 1) - epochs.start(epoch) == len(plan)
            assert all(epochs.of(batch) == epoch for batch in range(epochs.start(epoch), epochs.start(epoch + 1)))
        numbers = plan[plan >= 0]
        assert len(np.unique(numbers)) == len(numbers)  # so no two have the same noise
        times = np.bincount(numbers % n, minlength=n)
        assert (np.abs(times - repeats) < 1).all()
        for sample in np.flatnonzero(times):
            turns = np.sort(numbers[numbers % n == sample] // n)
            assert turns.tolist() == list(range(times[sample]))
        for batch in plan:
            of_batch = buckets[batch[batch >= 0] % n]
            assert len(of_batch) and (of_batch == of_batch[0]).all()
        total += times
        assert (np.abs(total - repeats * (epoch + 1)) < 1 + 1e-9).all()


def test_those_of_a_broken_number_are_spread_over_the_epochs():
    """Binomial(10,000, 1/4): outside of 2,500 ± 200 with probability 4e-6, once and for all."""
    found = [counts(np.full(10_000, 0.25), 0, epoch) for epoch in range(4)]
    assert (np.sum(found, axis=0) == 1).all()
    assert all(abs(int(one.sum()) - 2500) < 200 for one in found)


def test_repeats_of_one_change_nothing():
    """The plan of a data set in which nothing repeats is what it was before repeats were."""
    buckets = SIZES[np.arange(300) % 3]
    plan = epoch_plan(buckets, ONCE[:300], np.arange(300), 7, 3, 8)
    assert hashlib.blake2b(plan.tobytes(), digest_size=8).hexdigest() == "626acb483df764fc"
