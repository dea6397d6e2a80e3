"""What the index says of the pictures and captions: how many, which buckets and sets, what was left out and why.

Tables are read a row group at a time, so memory does not grow with their rows."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.geometry import enlargement

INDEX = "outs/index"
LISTED = 200  # rows of a list of names on the page
TAGS = 60  # on the page
RARE = 0.25  # of an even share of the pictures: buckets with fewer are rare
_LONGEST = 1 << 20  # letters of a field of a list
_COLUMNS = ["image", "width", "height", "bucket_width", "bucket_height", "mask", "focus"]
_SHOWN = 300  # letters of a name or a text on the page

Open = Callable[[str], BinaryIO]  # name of a file of the index -> what is in it
Lengths = Callable[[pa.StringArray], tuple[np.ndarray, str]]  # distinct captions -> (n,) lengths and their unit


@dataclass(frozen=True)
class Histogram:
    edges: np.ndarray  # (n + 1,)
    counts: np.ndarray  # (n,)


@dataclass(frozen=True)
class Bucket:
    width: int
    height: int
    count: int
    rare: bool


@dataclass(frozen=True)
class Listed:
    """Some of a list: a file of the index, or names."""

    count: int
    kinds: list[tuple[str, int]]  # the most frequent first
    rows: list[list[str]]  # the first LISTED


@dataclass(frozen=True)
class SetOf:
    name: str
    pictures: int  # distinct
    often: float  # samples of an epoch
    class_images: bool


@dataclass(frozen=True)
class Tags:
    captions: int  # that were looked at
    found: list[tuple[str, int]]  # the most frequent first, with how many captions have each


@dataclass(frozen=True)
class Data:
    used: int
    distinct: int  # of those, by content
    enlarged: int
    masked: int
    focused: int  # with a centre of interest
    buckets: list[Bucket]  # from the tallest to the widest
    rare: Listed  # pictures in rare buckets
    aspects: Histogram  # of log2(width / height)
    megapixels: Histogram  # of log2
    captions: int  # distinct captions of each distinct picture
    without_caption: int
    lengths: Histogram | None
    longest: int  # of the captions whose lengths are counted
    unit: str  # of the lengths: "tokens" or "letters"
    tags: Tags
    sets: list[SetOf]
    rejected: Listed
    unmatched: Listed
    copies: Listed
    near: Listed


def read(open_file: Open, measure: Lengths) -> Data:
    """Raises ValueError, OSError where a file of the index is damaged."""
    used = distinct = enlarged = masked = focused = 0
    aspects, megapixels, counts = _Bins(-3 - 1 / 16, 3 + 1 / 16, 1 / 8), _Bins(-10, 12, 1 / 4), Counter()
    before = None
    for batch in _batches(open_file, "images.parquet", _COLUMNS):
        batch = batch.filter(pc.is_valid(batch["bucket_width"]))
        width, height, *bucket = (batch[name].to_numpy().astype(np.int64) for name in _COLUMNS[1:5])
        masked, focused = (
            have + len(batch) - batch[name].null_count for have, name in ((masked, "mask"), (focused, "focus"))
        )
        images = batch["image"].to_pylist()
        used += len(images)
        distinct += sum(one != other for one, other in zip(images, [before, *images]))  # they are sorted
        before = images[-1] if images else before
        enlarged += int((enlargement(width, height, *bucket) > 1).sum())
        aspects.add(np.log2(width / height))
        megapixels.add(np.log2(width * height / 1e6))
        sides, many = np.unique(np.stack(bucket, 1), axis=0, return_counts=True)
        counts.update({tuple(map(int, side)): int(count) for side, count in zip(sides, many)})
    buckets = [Bucket(*size, count, count < RARE * used / len(counts)) for size, count in counts.items()]
    buckets.sort(key=lambda one: one.width / one.height)
    texts, empty = 0, 0
    for batch in _batches(open_file, "captions.parquet", ["text"]):
        texts, empty = texts + len(batch), empty + (pc.sum(pc.equal(batch["text"], "")).as_py() or 0)
    first = next(_batches(open_file, "captions.parquet", ["text"]), pa.table({"text": pa.array([], pa.string())}))
    some = first["text"].combine_chunks().filter(pc.not_equal(first["text"].combine_chunks(), ""))
    lengths, unit = measure(pc.unique(some))
    return Data(
        used=used,
        distinct=distinct,
        enlarged=enlarged,
        masked=masked,
        focused=focused,
        buckets=buckets,
        rare=_rare(open_file, buckets),
        aspects=aspects.histogram(),
        megapixels=megapixels.histogram(),
        captions=texts - empty,
        without_caption=empty,
        lengths=_whole_numbers(lengths),
        longest=int(lengths.max(initial=0)),
        unit=unit,
        tags=_tags(some),
        sets=_sets(open_file),
        rejected=_listed(open_file, "rejected.csv", lambda row: row[1].partition(":")[0]),
        unmatched=_listed(open_file, "unmatched.csv", lambda row: f"{row[1]}: {row[2].partition(':')[0]}"),
        copies=_listed(open_file, "copies.csv"),
        near=_listed(open_file, "near.csv"),
    )


def captions(open_file: Open, images: list[bytes]) -> dict[bytes, str]:
    """Hash of a picture -> one of its captions."""
    found = {}
    wanted = pa.array(images, pa.binary(16))
    for batch in _batches(open_file, "captions.parquet", ["image", "text"]):
        batch = batch.filter(pc.is_in(batch["image"], wanted))
        found |= dict(zip(batch["image"].to_pylist(), map(clip, batch["text"].to_pylist()), strict=True))
        if len(found) == len(wanted):
            break
    return found


def letters(texts: pa.StringArray) -> tuple[np.ndarray, str]:
    return pc.utf8_length(texts).to_numpy(zero_copy_only=False), "letters"


def clip(text: str) -> str:
    """A name or a text as a page shows it."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class _Bins:
    """Counts of numbers in bins of one width; those outside of [low, high] go to the outer ones."""

    def __init__(self, low: float, high: float, width: float):
        self._edges = np.linspace(low, high, round((high - low) / width) + 1)
        self._counts = np.zeros(len(self._edges) - 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self._counts += np.histogram(np.clip(values, self._edges[0], self._edges[-1]), self._edges)[0]

    def histogram(self) -> Histogram:
        """Without the empty bins at both ends."""
        there = np.flatnonzero(self._counts)
        first, end = (there[0], there[-1] + 1) if len(there) else (0, 0)
        return Histogram(self._edges[first : end + 1], self._counts[first:end])


def _whole_numbers(values: np.ndarray, bins: int = 40) -> Histogram | None:
    if not len(values):
        return None
    step = max(1, -(-int(values.max() - values.min() + 1) // bins))
    edges = np.arange(values.min(), values.max() + step + 1, step) - 0.5
    return Histogram(edges, np.histogram(values, edges)[0])


def _rare(open_file: Open, buckets: list[Bucket]) -> Listed:
    rare = {(one.width, one.height): one.count for one in buckets if one.rare}
    rows: list[list[str]] = []
    columns = ["path", "bucket_width", "bucket_height"]
    for batch in _batches(open_file, "images.parquet", columns) if rare else ():
        for path, width, height in zip(*(batch[name].to_pylist() for name in columns)):
            if (width, height) in rare and len(rows) < LISTED:
                rows.append([clip(path), f"{width}×{height}"])
        if len(rows) == LISTED:
            break
    kinds = [(f"{width}×{height}", count) for (width, height), count in rare.items()]
    return Listed(sum(rare.values()), sorted(kinds, key=lambda kind: -kind[1]), rows)


def _tags(texts: pa.StringArray) -> Tags:
    """What stands between commas in more than one caption."""
    tags = pc.split_pattern(texts, ",")
    table = pa.table({"caption": pc.list_parent_indices(tags), "tag": pc.utf8_trim_whitespace(tags.flatten())})
    table = table.group_by(["caption", "tag"]).aggregate([])  # once a caption
    counts = pc.value_counts(table["tag"].combine_chunks())
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist())
    found = sorted(((tag, count) for tag, count in pairs if count > 1 and tag), key=lambda pair: (-pair[1], pair[0]))
    return Tags(len(texts), [(clip(tag), count) for tag, count in found[:TAGS]])


def _sets(open_file: Open) -> list[SetOf]:
    """Those of the data set; none where it is undivided."""
    with open_file("samples.parquet") as file:
        names = json.loads((_opened(file, "samples.parquet").schema_arrow.metadata or {}).get(b"sets", b"[]"))
    pictures, often, is_class = np.zeros(len(names), int), np.zeros(len(names)), np.zeros(len(names), bool)
    before = None
    for batch in _batches(open_file, "samples.parquet", ["image", "set", "repeats", "class_images"]):
        keys = list(zip(batch["image"].to_pylist(), batch["set"].to_pylist()))
        first = np.array([one != other for one, other in zip(keys, [before, *keys])], bool)  # they are sorted
        before = keys[-1] if keys else before
        number = batch["set"].to_numpy()[first]
        pictures += np.bincount(number, minlength=len(names))
        often += np.bincount(number, batch["repeats"].to_numpy()[first], len(names))
        is_class[number] |= batch["class_images"].to_numpy()[first]
    if len(names) < 2:
        return []
    return [SetOf(clip(name), int(p), float(o), bool(c)) for name, p, o, c in zip(names, pictures, often, is_class)]


def _listed(open_file: Open, name: str, kind: Callable[[list[str]], str] | None = None) -> Listed:
    kinds, first, count = Counter(), [], 0
    csv.field_size_limit(_LONGEST)
    with open_file(name) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""))
        try:
            columns = len(next(rows, []))
            for row in rows:
                if len(row) != columns or columns < 2:
                    raise ValueError(f"{name}: row {count + 1} has {len(row)} columns, wanted {columns}")
                if kind is not None:
                    kinds[kind(row)] += 1
                count += 1
                if count <= LISTED:
                    first.append(list(map(clip, row)))
        except csv.Error as error:
            raise ValueError(f"{name}: {error}") from None
    return Listed(count, [(clip(kind), many) for kind, many in kinds.most_common()], first)


def _batches(open_file: Open, name: str, columns: list[str]) -> Iterator[pa.Table]:
    with open_file(name) as file:
        try:
            for group in range((table := _opened(file, name)).num_row_groups):
                yield table.read_row_group(group, columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from None


def _opened(file: BinaryIO, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from None
