"""Which samples make up each global batch of an epoch.

A sample may be in an epoch several times, or in some epochs only. Of n samples, number s stands for the first time that
an epoch has sample s, n + s for the second, and so on: all that is drawn at random for it is drawn by this number. A
sample with several views, in other buckets or resolutions, is as many entries of the n, of which each time draws one."""

import bisect
import threading
from collections.abc import Callable

import numpy as np

from pipeline.cache.reading import draws


def bucket_codes(buckets: np.ndarray) -> np.ndarray:
    """(n, 2) int32 buckets -> (n,) uint32, the two sides as one number."""
    return buckets.astype(np.uint16).view(np.uint32)[:, 0]


def counts(repeats: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: how many times each sample is in the epoch. repeats (n,) float64: how many times on average. A whole
    number is that in every epoch; of a broken one the first E epochs together have E times it, to less than one."""
    whole = np.floor(repeats)
    part = repeats - whole
    if not part.any():
        return whole.astype(np.int64)
    begin = draws.raw(seed, draws.REPEATS, 0, count=len(repeats)) / 2.0**64
    return (whole + np.floor((epoch + 1) * part + begin) - np.floor(epoch * part + begin)).astype(np.int64)


class Epochs:
    """Where epochs begin, in batches from the run's first. Threads may share it."""

    def __init__(
        self, buckets: np.ndarray, repeats: np.ndarray, subset: np.ndarray, seed: int, global_batch: int,
        samples: np.ndarray | None = None,
    ):  # fmt: skip
        """As for `epoch_plan`. Some sample must be in some epoch."""
        self._repeats, self._subset, self._seed, self._global_batch = repeats, subset, seed, global_batch
        self._samples = samples
        kinds, self._kind = np.unique(bucket_codes(buckets[subset]), return_inverse=True)
        self._kinds = len(kinds)
        self._every = None if (repeats[subset] % 1).any() or samples is not None else self._length(0)
        self._starts, self._lock = [0], threading.Lock()

    def start(self, epoch: int) -> int:
        """Its first batch; where it has none, that of the next."""
        if self._every is not None:
            return epoch * self._every
        self._extend(lambda: len(self._starts) > epoch)
        return self._starts[epoch]

    def of(self, batch: int) -> int:
        """The epoch that a batch is of."""
        if self._every is not None:
            return batch // self._every
        self._extend(lambda: self._starts[-1] > batch)
        return bisect.bisect_right(self._starts, batch) - 1

    def _extend(self, enough: Callable[[], bool]) -> None:
        with self._lock:
            while not enough():
                self._starts.append(self._starts[-1] + self._length(len(self._starts) - 1))

    def _length(self, epoch: int) -> int:
        if self._samples is None:
            times = counts(self._repeats, self._seed, epoch)[self._subset]
        else:
            found = entries(self._repeats, self._subset, self._seed, epoch, self._samples) % len(self._repeats)
            times = np.bincount(found, minlength=len(self._repeats))[self._subset]
        of_kind = np.bincount(self._kind, times, self._kinds)
        return int(np.ceil(of_kind / self._global_batch).sum())


def entries(
    repeats: np.ndarray, subset: np.ndarray, seed: int, epoch: int, samples: np.ndarray | None = None
) -> np.ndarray:
    """The numbers of all that an epoch has, as for `epoch_plan`, in no order."""
    if samples is None:
        first, views = subset, np.ones(len(subset), np.int64)
    else:
        is_first = np.ones(len(subset), bool)
        is_first[1:] = samples[subset[1:]] != samples[subset[:-1]]
        first, views = subset[is_first], np.diff(np.append(np.flatnonzero(is_first), len(subset)))
    times = counts(repeats, seed, epoch)[first]
    drawn = (
        draws.raw(seed, draws.VIEW, epoch, count=len(repeats))[first] >> np.uint64(2) if len(first) < len(subset) else 0
    )
    # the first time of all, then the second of those that have one ...; each has the view after the last time's
    turns = []
    for turn in range(times.max(initial=0)):
        view = ((drawn + np.uint64(turn)) % views.astype(np.uint64)).astype(np.int64) if samples is not None else 0
        turns.append((first + view + turn * len(repeats))[times > turn])
    return np.concatenate([subset[:0], *turns])


def epoch_plan(
    buckets: np.ndarray, repeats: np.ndarray, subset: np.ndarray, seed: int, epoch: int, global_batch: int,
    samples: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Every sample of `subset` as often as `counts` says, one bucket a batch, in an order that (seed, epoch) decide.

    buckets: (n, 2) int32, width and height of each sample's bucket; repeats: (n,) float64; subset: (m,) int64 samples;
    samples: (n,) of which sample each entry is a view, those of one side by side and in the subset together; None: of
    its own. global_batch: samples per batch over all ranks. Rank r of R takes columns r * global_batch / R onwards of each
    batch, so any number of ranks trains on the same batches.

    Returns (k, global_batch) int64; -1 fills the last batch of each bucket.
    """
    subset = np.asarray(subset, np.int64)
    is_plain = bool((repeats == 1).all()) and samples is None
    if not is_plain and len(subset):
        subset = entries(repeats, subset, seed, epoch, samples)
    if not len(subset):
        return np.zeros((0, global_batch), np.int64)
    shuffled = subset[draws.permutation(seed, draws.SAMPLES, epoch, len(subset))]
    codes = bucket_codes(buckets[shuffled if is_plain else shuffled % len(buckets)])
    kind = np.searchsorted(np.unique(codes), codes).astype(np.uint16)
    del codes
    of_kind = np.bincount(kind)
    shuffled = shuffled[np.argsort(kind, kind="stable")]
    batches = -(-of_kind // global_batch)
    plan = np.full(int(batches.sum()) * global_batch, -1, np.int64)
    begin = place = 0
    for count, batch_count in zip(of_kind.tolist(), batches.tolist(), strict=True):
        plan[place : place + count] = shuffled[begin : begin + count]
        begin += count
        place += batch_count * global_batch
    plan = plan.reshape(-1, global_batch)
    return plan[draws.permutation(seed, draws.BATCHES, epoch, len(plan))]
