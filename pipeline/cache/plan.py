"""Which samples make up each global batch of an epoch."""

import numpy as np

from pipeline.cache import draws


def bucket_codes(buckets: np.ndarray) -> np.ndarray:
    """(n, 2) int32 buckets -> (n,) uint32, the two sides as one number."""
    return buckets.astype(np.uint16).view(np.uint32)[:, 0]


def epoch_plan(buckets: np.ndarray, subset: np.ndarray, seed: int, epoch: int, global_batch: int) -> np.ndarray:
    """Every sample of `subset` exactly once, one bucket a batch, in an order that (seed, epoch) decide.

    buckets: (n, 2) int32, width and height of each sample's bucket; subset: (m,) int64 sample indices;
    global_batch: samples per batch over all ranks. Rank r of R takes columns r * global_batch / R onwards of each
    batch, so any number of ranks trains on the same batches.

    Returns (k, global_batch) int64; -1 fills the last batch of each bucket.
    """
    subset = np.asarray(subset, np.int64)
    if not len(subset):
        return np.zeros((0, global_batch), np.int64)
    shuffled = subset[draws.permutation(seed, draws.SAMPLES, epoch, len(subset))]
    codes = bucket_codes(buckets[shuffled])
    kind = np.searchsorted(np.unique(codes), codes).astype(np.uint16)
    del codes
    counts = np.bincount(kind)
    shuffled = shuffled[np.argsort(kind, kind="stable")]
    batches = -(-counts // global_batch)
    plan = np.full(int(batches.sum()) * global_batch, -1, np.int64)
    begin = place = 0
    for count, of_kind in zip(counts.tolist(), batches.tolist(), strict=True):
        plan[place : place + count] = shuffled[begin : begin + count]
        begin += count
        place += of_kind * global_batch
    plan = plan.reshape(-1, global_batch)
    return plan[draws.permutation(seed, draws.BATCHES, epoch, len(plan))]
