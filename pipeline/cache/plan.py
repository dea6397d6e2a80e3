"""Which samples make up each global batch of an epoch."""

import numpy as np

from pipeline.cache import draws



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
    shape = buckets[shuffled].astype(np.int64)
    code = shape[:, 0] << 32 | shape[:, 1]
    order = np.argsort(code, kind="stable")
    _, counts = np.unique(code[order], return_counts=True)
    batches = -(-counts // global_batch)
    starts = np.cumsum(batches) - batches  # first batch of each bucket
    within = np.arange(len(subset)) - np.repeat(np.cumsum(counts) - counts, counts)
    plan = np.full(int(batches.sum()) * global_batch, -1, np.int64)
    plan[np.repeat(starts * global_batch, counts) + within] = shuffled[order]
    plan = plan.reshape(-1, global_batch)
    return plan[draws.permutation(seed, draws.BATCHES, epoch, len(plan))]
