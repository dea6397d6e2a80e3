"""What the index says of the pictures and captions: how many, which buckets, what was left out and why."""

import csv
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.geometry import enlargement
from pipeline.report.revision import Revision

INDEX = "outs/index"
TEXT = "outs/text"
LISTED = 200  # rows of a list of names on the page
_BINS = 40
_LONGEST = 1 << 20  # letters of a field of a list


@dataclass(frozen=True)
class Histogram:
    edges: np.ndarray  # (n + 1,)
    counts: np.ndarray  # (n,)


@dataclass(frozen=True)
class Left:
    """What was left out: rejected.csv or unmatched.csv."""

    count: int
    kinds: list[tuple[str, int]]  # the most frequent first
    rows: list[list[str]]  # the first LISTED


@dataclass(frozen=True)
class Data:
    used: int
    distinct: int  # of those, by content
    enlarged: int
    buckets: list[tuple[int, int, int]]  # (width, height, pictures), from the tallest to the widest
    aspects: Histogram  # of log2(width / height)
    megapixels: Histogram
    captions: int  # distinct captions of each distinct picture
    without_caption: int
    lengths: Histogram | None
    unit: str  # of the lengths: "tokens" or "letters"
    rejected: Left
    unmatched: Left


def read(revision: Revision) -> Data | None:
    """None before the index is there. Raises ValueError, OSError where a file of it is damaged."""
    if not revision.exists(f"{INDEX}/images.parquet"):
        return None
    images = _table(revision, f"{INDEX}/images.parquet", ["image", "width", "height", "bucket_width", "bucket_height"])
    images = images.filter(pc.is_valid(images["bucket_width"]))
    width, height, *bucket = (images[name].to_numpy().astype(np.int64) for name in images.column_names[1:])
    sides, counts = np.unique(np.stack(bucket, 1), axis=0, return_counts=True) if len(images) else ([], [])
    buckets = [(int(w), int(h), int(count)) for (w, h), count in zip(sides, counts)]
    texts = _table(revision, f"{INDEX}/captions.parquet", ["text"])["text"]
    empty = pc.sum(pc.equal(texts, "")).as_py() or 0
    lengths, unit = _lengths(revision, texts)
    return Data(
        used=len(images),
        distinct=len(pc.unique(images["image"])),
        enlarged=int((enlargement(width, height, *bucket) > 1).sum()),
        buckets=sorted(buckets, key=lambda one: one[0] / one[1]),
        aspects=_histogram(np.log2(width / height)),
        megapixels=_histogram(width * height / 1e6),
        captions=len(texts) - empty,
        without_caption=empty,
        lengths=lengths,
        unit=unit,
        rejected=_left(revision, f"{INDEX}/rejected.csv", lambda row: row[1].partition(":")[0]),
        unmatched=_left(revision, f"{INDEX}/unmatched.csv", lambda row: f"{row[1]}: {row[2].partition(':')[0]}"),
    )


def captions(revision: Revision, images: list[bytes]) -> dict[bytes, str]:
    """Hash of a picture -> one of its captions."""
    table = _table(revision, f"{INDEX}/captions.parquet", ["image", "text"])
    table = table.filter(pc.is_in(table["image"], pa.array(images, pa.binary(16))))
    return dict(zip(table["image"].to_pylist(), table["text"].to_pylist(), strict=True))


def _lengths(revision: Revision, texts: pa.ChunkedArray) -> tuple[Histogram | None, str]:
    """In tokens where the captions are encoded, else in letters; each distinct caption counts once."""
    shards = [name for name in revision.names(TEXT) if name.endswith(".parquet")]
    if shards:
        counts = [_table(revision, f"{TEXT}/{name}", ["caption_tokens"])["caption_tokens"] for name in shards]
        found, unit = np.concatenate([column.to_numpy() for column in counts]), "tokens"
    else:
        found, unit = pc.utf8_length(pc.unique(texts)).to_numpy(zero_copy_only=False), "letters"
    if not len(found):
        return None, unit
    step = max(1, -(-int(found.max() - found.min() + 1) // _BINS))  # whole numbers to a bin
    edges = np.arange(found.min(), found.max() + step + 1, step) - 0.5
    return Histogram(edges, np.histogram(found, edges)[0]), unit


def _histogram(values: np.ndarray) -> Histogram:
    if not len(values):
        return Histogram(np.zeros(1), np.zeros(0))
    counts, edges = np.histogram(values, _BINS)
    return Histogram(edges, counts)


def _left(revision: Revision, path: str, kind) -> Left:
    kinds, first, count = Counter(), [], 0
    csv.field_size_limit(_LONGEST)
    with revision.open(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""))
        try:
            columns = len(next(rows, []))
            for row in rows:
                if len(row) != columns or columns < 2:
                    raise ValueError(f"{path}: row {count + 1} has {len(row)} columns, wanted {columns}")
                kinds[kind(row)] += 1
                count += 1
                if count <= LISTED:
                    first.append(row)
        except csv.Error as error:
            raise ValueError(f"{path}: {error}") from None
    return Left(count, kinds.most_common(), first)


def _table(revision: Revision, path: str, columns: list[str]) -> pa.Table:
    with revision.open(path) as file:
        try:
            return pq.read_table(file, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
