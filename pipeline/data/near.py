"""Near copies: pictures that look alike but are not the same file, found by their perceptual hashes.

The hash is the 64 bits of imagehash.phash: the signs of a small picture's lowest frequencies about their median. Scaled
and recompressed copies differ in at most four of them, other pictures rarely in fewer than ten."""

import csv
import itertools
from collections import defaultdict
from pathlib import Path

import imagehash
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

DISTANCE = 4  # bits in which near copies differ at most; two hashes differ in an even number of them
_SIDE = 128  # to which a picture is reduced first: the hash itself is made of 32×32 pixels
_FLAT = 8  # of 255: pictures with less contrast have no hash, as all of them would look alike
_PARTS = (0, 11, 22, 33, 44, 54, 64)  # bits; of six parts at least two are equal where four bits differ
_WINDOW = 64  # of very many pictures with two equal parts each is compared with so many that follow


def perceptual_hash(pixels: np.ndarray) -> int | None:
    """64 bits of a picture (height, width, 3) uint8; None where it shows nothing."""
    image = Image.fromarray(pixels)
    image = image.reduce((max(1, image.width // _SIDE), max(1, image.height // _SIDE))).convert("L")
    darkest, brightest = image.getextrema()
    if brightest - darkest < _FLAT:
        return None
    return int.from_bytes(np.packbits(imagehash.phash(image).hash).tobytes(), "big")


def write(images: Path, file: Path) -> list[tuple[str, str, int]]:
    """near.csv, of images.parquet: (path, near_to, distance), sorted by the latter two's first. `near_to` is the first
    path of a group, and distance that of the path's hash from it, in bits: it may be above DISTANCE where others of the
    group lie between. Of pictures of the same content the first stands for all. Returns the rows."""
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    begin, before = 0, None
    with pq.ParquetFile(images) as table:
        for number in range(table.num_row_groups):
            rows = table.read_row_group(number, ["image", "rejected", "phash"])
            names = rows["image"].to_pylist()
            is_first = np.array([one != other for one, other in zip(names, [before, *names])], bool)  # they are sorted
            is_hashed = pc.and_(pc.is_null(rows["rejected"]), pc.is_valid(rows["phash"])).to_numpy()
            chosen = np.flatnonzero(is_first & is_hashed)
            hashes.append(pc.fill_null(rows["phash"], 0).to_numpy()[chosen])
            places.append(begin + chosen)
            begin, before = begin + len(rows), names[-1]
    hashes, places = np.concatenate(hashes), np.concatenate(places)
    group = groups(hashes)
    alike = np.flatnonzero(np.bincount(group)[group] > 1) if len(group) else np.empty(0, np.int64)
    members = defaultdict(list)
    for row, path in zip(alike.tolist(), _paths(images, places[alike])):
        members[int(group[row])].append((path, row))
    found = []
    for pairs in members.values():
        (first, row), *others = sorted(pairs)
        bits = distance(hashes[[other for _, other in others]], hashes[row])
        found += [(path, first, int(count)) for (path, _), count in zip(others, bits)]
    found.sort(key=lambda one: (one[1], one[0]))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("path", "near_to", "distance"), *found])
    return found


def _paths(images: Path, rows: np.ndarray) -> list[str]:
    """Of the rows (n,) of images.parquet, which are sorted."""
    found, begin = [], 0
    with pq.ParquetFile(images) as table:
        for number in range(table.num_row_groups):
            end = begin + table.metadata.row_group(number).num_rows
            if len(inside := rows[(rows >= begin) & (rows < end)]):
                found += table.read_row_group(number, ["path"])["path"].take(inside - begin).to_pylist()
            begin = end
    return found


def groups(hashes: np.ndarray) -> np.ndarray:
    """(n,) int64 for (n,) uint64: pictures of the same number look alike, each some other of its group.

    Multi-index hashing (arXiv 1307.2982): hashes that differ in at most DISTANCE bits are equal in two of six parts, so
    only those are compared that are neighbours in one of 15 orders. Where more than _WINDOW hashes are equal in two
    parts, some pairs among them are not seen; they are nearly always of one group by others."""
    distinct, of_hash = np.unique(hashes, return_inverse=True)
    group = np.arange(len(distinct))
    for first, second in itertools.combinations(range(len(_PARTS) - 1), 2):
        mask = np.uint64(_bits(first) | _bits(second))
        order = np.argsort(distinct & mask, kind="stable")
        ordered = distinct[order]
        key = ordered & mask
        left = np.arange(len(order))
        for step in range(1, _WINDOW + 1):
            left = left[left + step < len(order)]
            left = left[key[left] == key[left + step]]
            if not len(left):
                break
            apart = left[group[order[left]] != group[order[left + step]]]
            near = apart[distance(ordered[apart], ordered[apart + step]) <= DISTANCE]
            group = _joined(group, order[near], order[near + step])
    return group[of_hash]


def _joined(group: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`group` (n,) with those of `one` and `other` (m,), indices into it, made the same."""
    if not len(one):
        return group
    edges = np.ones(len(one), np.int8), (group[one], group[other])
    return connected_components(coo_array(edges, shape=(len(group),) * 2), directed=False)[1].astype(np.int64)[group]


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bits in which hashes (n,) uint64 differ."""
    parts = np.ascontiguousarray(one ^ other).view(np.uint16).reshape(-1, 4)
    return _ONES[parts].sum(axis=1)


def _bits(part: int) -> int:
    return (1 << _PARTS[part + 1]) - (1 << _PARTS[part])


_ONES = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
