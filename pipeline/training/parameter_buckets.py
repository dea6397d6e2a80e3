"""Parameters in buckets of some hundred megabytes: what one collective carries, and what is updated in one turn.

A bucket is a range of consecutive parameters, either all cut into slices among the ranks (ZeRO-1) or none."""

from math import prod

import pipeline.device  # noqa: F401  (sets MindSpore's environment before its import)

import mindspore as ms
from mindspore import nn, ops

from pipeline.models import forms
from pipeline.training import memory

BYTES = memory.BUCKET
COUNT = 100  # parameters in a bucket: MindSpore compiles a loop over them to calls, at most 1,000 deep


def ranges(parameters, cut) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each bucket."""
    found, start, held = [], 0, 0
    for index, parameter in enumerate(parameters):
        size = 4 * prod(parameter.shape)
        if index > start and (held + size > BYTES or index - start == COUNT or cut[index] != cut[start]):
            found.append((start, index))
            start, held = index, 0
        held += size
    return (*found, (start, len(parameters))) if len(parameters) else ()


class InTurns(nn.Cell):
    """Maps a function over tuples as long as the parameters, one bucket after the other.

    MindSpore 2.10.0 runs every kernel that can run before those that write parameters, so that without turns the
    temporaries of all parameters would be in memory together. A kernel stands between two turns: without it each kernel
    of a turn would wait for each that ends the turn before, 10,000 edges of the graph where 100 come after 100."""

    def __init__(self, parameters):
        super().__init__(auto_prefix=False)
        self.negate = ops.Neg()  # any kernel: nobody reads a turn's value
        self.ranges = ranges(parameters, (False,) * len(parameters))
        self.map = ops.HyperMap()

    def construct(self, function, scalars, turn, *tuples):
        """function(scalars, turn, *items): what it computes shall wait for the scalar `turn` (ops.depend). -> `turn`,
        after all turns"""
        now = turn
        for start, stop in self.ranges:
            if start:
                now = self.negate(now)
            items = [values[start:stop] for values in tuples]
            now = ops.depend(turn, self.map(ops.partial(function, scalars, now), *items))
        return now


def _rows(ranks, turn, x):
    return ops.cast(ops.depend(x, turn), ms.float32).reshape(ranks, -1)


def _row(x):
    return x.reshape(1, -1)


def _like(x, other):
    return x.reshape(other.shape)


class Bucket(nn.Cell):
    """The parameters from `start` to `stop` - 1; when they are cut, `rank` of `ranks` owns a slice of each one's first
    axis. Flat buffers hold the slices of one rank one after the other."""

    def __init__(self, parameters, start: int, stop: int, cut: bool, rank: int, ranks: int):
        super().__init__(auto_prefix=False)
        self.start, self.stop, self.cut, self.rank = start, stop, cut, rank
        self.rows = ranks if cut else 1
        self.sizes = tuple(prod(p.shape) // self.rows for p in parameters[start:stop])
        self.scatters = cut and not forms.on_cpu()  # MindSpore's CPU backend has no ReduceScatter
        self.reduce_scatter = ops.ReduceScatter() if self.scatters else None
        self.all_reduce = ops.AllReduce()
        self.all_gather = ops.AllGather()
        self.map = ops.HyperMap()
        self.split = ops.auto_generate.SplitWithSize()

    def reduce(self, gradients, turn):
        """(n,) float32: the sums over all ranks of the gradients, of this rank's slices where they are cut; after
        `turn` is there. `gradients` are those of all parameters."""
        flat = ops.Concat(1)(self.map(ops.partial(_rows, self.rows, turn), gradients[self.start : self.stop]))
        if self.scatters:
            return self.reduce_scatter(flat).reshape(-1)
        flat = self.all_reduce(flat)
        return flat[self.rank] if self.cut else flat.reshape(-1)

    def parts(self, flat, likes):
        """The tensors that `flat` (n,) consists of, each in the shape of its one of `likes`, a tuple over all
        parameters."""
        return self.map(_like, self.split(flat, self.sizes, 0), likes[self.start : self.stop])

    def gather(self, slices, parameters):
        """The whole values of which each rank has slices. `slices` are the bucket's, `parameters` all."""
        flat = self.all_gather(ops.Concat(1)(self.map(_row, slices)))  # (ranks, n)
        return self.map(_like, self.split(flat, self.sizes, 1), parameters[self.start : self.stop])


def buckets(parameters, cut, rank: int, ranks: int) -> nn.CellList:
    return nn.CellList(
        [Bucket(parameters, start, stop, cut[start], rank, ranks) for start, stop in ranges(parameters, cut)]
    )
