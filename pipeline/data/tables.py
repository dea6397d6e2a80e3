"""The index's tables, written as streams: rows come in any order and number, files come out sorted.

Rows wait on disk in 16 stretches by the first bits of the image's hash. Each stretch is sorted by itself, and the
stretches follow each other in the hash's order, so memory holds a sixteenth of the rows at a time. The files' bytes
are a function of the rows alone: row groups have a fixed number of rows, however the rows came in."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import store
from pipeline.data import captions

IMAGES = pa.schema(
    [
        pa.field("image", pa.binary(16), nullable=False),  # blake2b of the file's bytes
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32()),  # of the upright picture; null when it could not be decoded
        pa.field("height", pa.int32()),
        pa.field("bucket_width", pa.int32()),  # null when the picture is rejected
        pa.field("bucket_height", pa.int32()),
        pa.field("rejected", pa.string()),  # the reason; null for a picture that is used
    ]
)
CAPTIONS = pa.schema(
    [
        pa.field("image", pa.binary(16), nullable=False),
        pa.field("caption", pa.binary(16), nullable=False),  # captions.name(text, text_2)
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_2", pa.string()),  # the second encoder's own text; null when it reads the same
    ]
)
TEXTS = pa.schema([CAPTIONS.field(name) for name in ("image", "text", "text_2")])
_STRETCHES = 16
_ROW_GROUP = 1 << 17


class Rows:
    """Rows with an `image` column, waiting on disk in scratch files."""

    def __init__(self, schema: pa.Schema):
        self._schema = schema
        self._files = [store.scratch() for _ in range(_STRETCHES)]
        self._writers = [pa.ipc.new_stream(file, schema) for file in self._files]

    def add(self, rows: pa.Table) -> None:
        rows = rows.cast(self._schema)
        stretch = _bytes(rows["image"])[:, 0] // (256 // _STRETCHES)
        order = np.argsort(stretch, kind="stable")
        ends = np.cumsum(np.bincount(stretch, minlength=_STRETCHES))
        rows = rows.take(pa.array(order))
        for writer, start, end in zip(self._writers, [0, *ends], ends):
            if end > start:
                writer.write_table(rows.slice(start, end - start).combine_chunks())

    def stretches(self) -> Iterator[pa.Table]:
        """All rows, in 16 tables in the order of the hash; each is in the order of arrival. No `add` after this."""
        for writer, file in zip(self._writers, self._files):
            writer.close()
            file.seek(0)
            yield pa.ipc.open_stream(file).read_all()


def write_images(images: Rows, file: Path) -> None:
    """images.parquet: a row for each file, sorted by image and path."""
    _write(file, IMAGES, (_sorted_images(rows) for rows in images.stretches()))


def write_captions(images: Rows, texts: Rows, file: Path) -> tuple[int, int, pa.ChunkedArray]:
    """captions.parquet: the distinct captions of each picture that is used, sorted by image and caption. A picture with
    none gets the empty one; returns how many captions the others have, how many pictures have none, and the paths of
    their files. `texts` holds rows of TEXTS, of used pictures only."""
    given, empty, paths = 0, 0, [pa.array([], pa.string())]

    def sorted_captions() -> Iterator[pa.Table]:
        nonlocal given, empty
        for rows, stretch in zip(images.stretches(), texts.stretches()):
            is_used = pc.is_null(rows["rejected"])
            table, filled = _distinct_captions(pc.unique(rows["image"].filter(is_used)), stretch)
            given += len(table) - len(filled)
            empty += len(filled)
            is_bare = pc.and_(is_used, pc.is_in(rows["image"], value_set=filled))
            paths.extend(rows["path"].filter(is_bare).chunks)
            yield table

    _write(file, CAPTIONS, sorted_captions())
    return given, empty, pa.chunked_array(paths)


def write_unmatched(unmatched: list[tuple[str, str, str]], without_caption: pa.ChunkedArray, file: Path) -> None:
    """unmatched.csv: (path, what, reason) of what found no partner, and of the pictures `without_caption`; sorted."""
    count = len(without_caption)
    pictures = [without_caption, *(pa.repeat(pa.scalar(text), count) for text in ("picture", "no caption"))]
    names = ["path", "what", "reason"]
    given = [pa.array(column, pa.string()) for column in zip(*unmatched)] or [pa.array([], pa.string())] * 3
    rows = pa.concat_tables([pa.table(pictures, names), pa.table(given, names)])
    rows = rows.sort_by([(name, "ascending") for name in names])
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        for batch in rows.to_batches(max_chunksize=_ROW_GROUP):
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns)))


def _sorted_images(rows: pa.Table) -> pa.Table:
    keys = _keys(rows["image"])
    order = np.lexsort(keys)
    if not _first_of_equal([key[order] for key in keys]).all():  # copies of a picture: by path
        order = pc.sort_indices(rows, sort_keys=[("image", "ascending"), ("path", "ascending")])
    return rows.take(pa.array(order))


def _distinct_captions(used: pa.Array, texts: pa.Table) -> tuple[pa.Table, pa.Array]:
    """Captions of a stretch, distinct and sorted, with an empty one for each of `used` (distinct) that has none; and
    those."""
    names = [
        captions.name(text, text_2) for text, text_2 in zip(texts["text"].to_pylist(), texts["text_2"].to_pylist())
    ]
    given = texts.append_column("caption", pa.array(names, pa.binary(16))).select(CAPTIONS.names)
    fill = [
        used,
        *(pa.repeat(pa.scalar(value, field.type), len(used)) for value, field in zip(_EMPTY, CAPTIONS.remove(0))),
    ]
    rows = pa.concat_tables([given.cast(CAPTIONS), pa.Table.from_arrays(fill, schema=CAPTIONS)])
    is_fill = np.arange(len(rows)) >= len(given)
    keys = [*_keys(rows["caption"]), is_fill, *_keys(rows["image"])]
    order = np.lexsort(keys)
    keys = [key[order] for key in keys]
    first_of_image = _first_of_equal(keys[3:])
    # Given captions come before the empty one, so that stands only where it is the first of its image.
    keep = _first_of_equal(keys) & (first_of_image | ~keys[2])
    filled = rows["image"].take(pa.array(order[keep & keys[2]])).combine_chunks()
    return rows.take(pa.array(order[keep])), filled


_EMPTY = (captions.name("", None), "", None)


def _write(file: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Parquet in row groups of a fixed number of rows."""
    hashes = {"image", "caption", "path"}
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=[name for name in schema.names if name not in hashes],
        write_statistics=True,
    ) as writer:
        waiting = schema.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= _ROW_GROUP:
                writer.write_table(waiting.slice(0, _ROW_GROUP).combine_chunks(), row_group_size=_ROW_GROUP)
                waiting = waiting.slice(_ROW_GROUP)
        if len(waiting):
            writer.write_table(waiting.combine_chunks(), row_group_size=_ROW_GROUP)


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """(n, 16) uint8 of a column of 16-byte names without nulls."""
    parts = [
        np.frombuffer(c.buffers()[1], np.uint8)[c.offset * 16 : (c.offset + len(c)) * 16]
        for c in column.chunks
        if len(c)
    ]
    return np.concatenate(parts).reshape(-1, 16) if parts else np.empty((0, 16), np.uint8)


def _keys(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Names as two numbers each, least significant first, as np.lexsort takes them; their order is that of the
    bytes."""
    high, low = np.ascontiguousarray(_bytes(column)).view(">u8").astype(np.uint64).T
    return [low, high]


def _first_of_equal(keys: list[np.ndarray]) -> np.ndarray:
    """(n,) bool: whether a row of sorted keys differs from the one before."""
    first = np.ones(len(keys[0]), bool)
    if len(first):
        first[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return first
