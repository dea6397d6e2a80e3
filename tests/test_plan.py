"""The order of an epoch."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.plan import epoch_plan

SIZES = np.array([(64, 64), (96, 32), (32, 96)], np.int32)


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
    plan = epoch_plan(buckets, subset, seed, epoch, global_batch)
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
    first = epoch_plan(buckets, subset, 7, 0, 8)
    assert np.array_equal(first, epoch_plan(buckets, subset, 7, 0, 8))
    assert not np.array_equal(first, epoch_plan(buckets, subset, 7, 1, 8))
    assert not np.array_equal(first, epoch_plan(buckets, subset, 8, 0, 8))


def test_batches_of_different_buckets_are_mixed():
    plan = epoch_plan(SIZES[np.arange(600) % 3], np.arange(600), 0, 0, 10)
    kinds = (plan.max(axis=1) % 3).tolist()
    assert sum(a != b for a, b in zip(kinds, kinds[1:], strict=False)) > 20  # sorted by bucket there would be 2


def test_each_position_is_equally_likely():
    """Chi-squared over where sample 0 lands in 4,000 epochs of 10: 9 degrees of freedom, 27.9 is its 0.1 % point."""
    buckets = SIZES[np.zeros(10, int)]
    places = [int(np.flatnonzero(epoch_plan(buckets, np.arange(10), 3, epoch, 10)[0] == 0)[0]) for epoch in range(4000)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 400) ** 2 / 400).sum() < 27.9


def test_an_empty_subset_has_no_batches():
    assert epoch_plan(SIZES, np.array([], np.int64), 0, 0, 4).shape == (0, 4)
