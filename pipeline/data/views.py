"""Views: a picture as a set sees it, in a bucket. A sample has one, or several of which training draws one each time."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.data.buckets import SIDE_MULTIPLE, sizes
from pipeline.data.how import How, dumps
from pipeline.data.sets import Members, Set, SetsError

USUAL = 0  # stands for the resolutions of params.yaml


@dataclass(frozen=True)
class Choice:
    """The buckets of n pictures at one resolution, (n, k, 2) int32 width and height, the nearest first and further ones
    behind it; which of those can be used, (n, k) bool; and why the nearest cannot, (n,) text or None."""

    buckets: np.ndarray
    can: np.ndarray
    reasons: np.ndarray


@dataclass(frozen=True)
class Views:
    """v views, by sample and in the order in which the set names its resolutions: `sample` (v,) as an index into
    Members.picture, `picture` (v,), `how` (v,), `bucket` (v, 2) int32 width and height. `seen` (samples,) bool: which
    samples have one."""

    sample: np.ndarray
    picture: np.ndarray
    how: np.ndarray
    bucket: np.ndarray
    seen: np.ndarray


def of_sets(sets: tuple[Set, ...]) -> tuple[list[How], list[int]]:
    """What the sets say, each once, in an order of its own; and which of them each set has."""
    said = [How(one.flip, one.crop, one.crops, one.background) for one in sets]
    distinct = sorted(set(said), key=lambda how: dumps([how]))
    return distinct, [distinct.index(how) for how in said]


def resolutions(one: Set) -> tuple[int, ...]:
    return one.resolutions or (USUAL,)


def with_usual(sets: tuple[Set, ...], further: tuple[int, ...]) -> tuple[Set, ...]:
    """The sets, of which those that name no resolution have the `further` ones too (index.further_resolutions)."""
    if not further:
        return sets
    return tuple(one if one.resolutions else replace(one, resolutions=(USUAL, *further)) for one in sets)


def sizes_of(sets: tuple[Set, ...], step: int, several: bool) -> dict[int, list[tuple[int, int]]]:
    """The buckets of each resolution that a set names, as buckets.sizes gives them. Raises SetsError."""
    found = {}
    for one in sets:
        for side in filter(None, one.resolutions):
            if side % (step if several else SIDE_MULTIPLE):
                whose = f"the set {one.name!r}" if one.name else "index.further_resolutions"
                raise SetsError(
                    f"{whose}: a resolution of {side}; wanted a multiple of "
                    f"{f'index.bucket_step, {step}' if several else SIDE_MULTIPLE}"
                )
            found[side] = sizes(side, step, several)
    return found


def is_plain(sets: tuple[Set, ...], neighbors: int = 0) -> bool:
    """Whether each picture has one bucket and is prepared in one way, whatever sets it is in."""
    one_bucket = len({resolutions(one) for one in sets}) == 1 == len(resolutions(sets[0])) and not neighbors
    return one_bucket and len(of_sets(sets)[0]) == 1


def see(members: Members, sets: tuple[Set, ...], choices: dict[int, Choice]) -> Views:
    """All views of a part's samples. choices: of its pictures, by resolution."""
    _, how_of = of_sets(sets)
    found = []
    for number, one in enumerate(sets):
        mine = np.flatnonzero(members.number == number)
        picture = members.picture[mine]
        for turn, resolution in enumerate(resolutions(one)):
            choice = choices[resolution]
            for place in range(choice.can.shape[1]):
                can = choice.can[picture, place]
                bucket = choice.buckets[picture[can], place]
                order = np.full(int(can.sum()), turn + place * len(resolutions(one)))
                how = np.full(len(order), how_of[number])
                found.append(np.column_stack([mine[can], order, picture[can], how, bucket]))
    table = np.concatenate(found).astype(np.int64)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    _, first = np.unique(table[:, [0, 4, 5]], axis=0, return_index=True)  # two resolutions may share a bucket
    table = table[np.sort(first)] if len(first) < len(table) else table
    seen = np.zeros(len(members.picture), bool)
    seen[table[:, 0]] = True
    return Views(table[:, 0], table[:, 2], table[:, 3], table[:, 4:].astype(np.int32), seen)


def first(
    views: Views, members: Members, sets: tuple[Set, ...], choices: dict[int, Choice], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of each of a part's `count` pictures the bucket of its first view, (n, 2) int32, zeros for none; and why no set uses
    it, (n,) text or None."""
    seen, at = np.unique(views.picture, return_index=True)
    buckets = np.zeros((count, 2), np.int32)
    buckets[seen] = views.bucket[at]
    reasons = np.full(count, None, object)
    for number, one in reversed(list(enumerate(sets))):
        mine = members.picture[members.number == number]
        reasons[mine] = choices[resolutions(one)[0]].reasons[mine]
    reasons[seen] = None
    return buckets, reasons


def of_samples(views: Views) -> pa.ListArray:
    """(width, height, width, height, ...) of each sample."""
    begins = np.searchsorted(views.sample, np.arange(len(views.seen) + 1)) * 2
    return pa.ListArray.from_arrays(pa.array(begins, pa.int32()), pa.array(views.bucket.ravel(), pa.int32()))


def of_pictures(views: Views, count: int) -> pa.ListArray:
    """(how, width, height, how, ...) of each of `count` pictures: all that it is to be encoded for, sorted."""
    table = np.unique(np.column_stack([views.picture, views.how, views.bucket]), axis=0)
    begins = np.searchsorted(table[:, 0], np.arange(count + 1)) * 3
    return pa.ListArray.from_arrays(pa.array(begins, pa.int32()), pa.array(table[:, 1:].ravel(), pa.int32()))
