"""The index's tables, written as streams: rows come in any order and number, files come out sorted.

Rows wait on disk in 16 stretches by the first bits of the image's hash. Each stretch is sorted by itself, and the
stretches follow each other in the hash's order, so memory holds a sixteenth of the rows at a time. The files' bytes
are a function of the rows alone: row groups have a fixed number of rows, however the rows came in."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import store
from pipeline.data import captions

IMAGES = pa.schema(
    [
        pa.field("image", pa.binary(16), nullable=False),  # masks.content: of the file's bytes, its mask's, and focus
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32()),  # of the upright picture; null when it could not be decoded
        pa.field("height", pa.int32()),
        pa.field("bucket_width", pa.int32()),  # null when the picture is rejected
        pa.field("bucket_height", pa.int32()),
        pa.field("rejected", pa.string()),  # the reason; null for a picture that is used
        pa.field("phash", pa.uint64()),  # perceptual hash; null when it was not decoded or shows nothing
        pa.field("mask", pa.string()),  # the mask's path, or empty: the alpha channel; null without a mask
        # (left, top, right, bottom) of its centre of interest, in shares of its width and height; null without one
        pa.field("focus", pa.list_(pa.float32())),
        # Where sets differ in how pictures are prepared: (how, width, height, how, ...) of all that the picture is
        # encoded for, `how` as a place in the list under `how` of the file's metadata. Else null: its bucket alone.
        pa.field("views", pa.list_(pa.int32())),
    ]
)
CAPTIONS = pa.schema(
    [
        pa.field("image", pa.binary(16), nullable=False),
        pa.field("caption", pa.binary(16), nullable=False),  # captions.name(text, text_2, emphasis)
        pa.field("text", pa.string(), nullable=False),
        pa.field("text_2", pa.string()),  # the second encoder's own text; null when it reads the same
    ]
)
SAMPLES = pa.schema(  # a sample is a picture as a set has it
    [
        pa.field("image", pa.binary(16), nullable=False),
        pa.field("set", pa.int32(), nullable=False),  # its number; the file's metadata has the names under `sets`
        pa.field("caption", pa.binary(16), nullable=False),  # one of the sample's
        pa.field("chance", pa.float32(), nullable=False),  # of the caption, beside the sample's others
        pa.field("repeats", pa.float64(), nullable=False),  # of the sample in an epoch, all its files together
        pa.field("loss_weight", pa.float32(), nullable=False),
        pa.field("caption_dropout", pa.float32()),  # null: train.caption_dropout
        pa.field("class_images", pa.bool_(), nullable=False),  # of a class set: never held out for validation
        # (width, height, width, ...) of its buckets, of which an epoch draws one, where sets or resolutions differ. Else
        # null: the picture's own.
        pa.field("buckets", pa.list_(pa.int32())),
    ]
)
MEMBERS = pa.schema(  # a row for each file in each set
    [
        SAMPLES.field("image"),
        SAMPLES.field("set"),
        pa.field("path", pa.string(), nullable=False),
        pa.field("times", pa.float64(), nullable=False),  # by its table
        SAMPLES.field("buckets"),
    ]
)
TEXTS = pa.schema([*list(SAMPLES)[:2], *list(CAPTIONS)[2:], SAMPLES.field("chance")])
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


def write_images(images: Rows, file: Path, hows: str | None = None) -> pa.Table:
    """images.parquet: a row for each file, sorted by image and path; `hows` goes into its metadata. Returns a table of copies: `path` and `copy_of`,
    the first path with the same content, of pictures that are used."""
    copies = [pa.table({"path": pa.array([], pa.string()), "copy_of": pa.array([], pa.string())})]

    def sorted_images() -> Iterator[pa.Table]:
        for rows in images.stretches():
            rows = _sorted_images(rows)
            used = rows.filter(pc.is_null(rows["rejected"]))
            first = _first_of_equal(_keys(used["image"]))
            if not first.all():
                further = np.flatnonzero(~first)
                firsts = np.flatnonzero(first)[np.cumsum(first)[further] - 1]
                columns = [used["path"].take(pa.array(places)) for places in (further, firsts)]
                copies.append(pa.table(columns, ["path", "copy_of"]))
            yield rows

    _write(file, IMAGES.with_metadata({"how": hows}) if hows else IMAGES, sorted_images())
    return pa.concat_tables(copies)


@dataclass
class Written:
    """What `write_captions` found."""

    given: int = 0  # captions of pictures that have one, in captions.parquet
    empty: int = 0  # pictures that have none
    bare: list[pa.Array] = field(default_factory=lambda: [pa.array([], pa.string())])  # and the paths of their files
    samples: int = 0
    often: float = 0.0  # samples of an epoch


def write_captions(
    members: Rows, texts: Rows, file: Path, samples: Path, settings: list[dict], emphasis: str = "none"
) -> Written:
    """captions.parquet: the distinct captions of each picture that is used, sorted by image and caption; and
    samples.parquet: those of each sample, sorted by image, set and caption. A sample without one gets the empty one.

    `members` and `texts` hold rows of MEMBERS and TEXTS, of used pictures only. settings: of each set its `name`, the
    number that `times` is multiplied by (`repeats`), the columns of SAMPLES that it decides, and if sets differ in that
    the text of its `how`. emphasis: as captions.name takes it."""
    written = Written()
    texts_of = {"sets": json.dumps([one["name"] for one in settings])}
    if any("how" in one for one in settings):
        texts_of["how"] = f"[{', '.join(one['how'] for one in settings)}]"
    own = ("loss_weight", "caption_dropout", "class_images")
    by_set = {name: pa.array([one[name] for one in settings], SAMPLES.field(name).type) for name in own}
    multiplier = np.array([one["repeats"] for one in settings], np.float64)

    with (
        _Writer(file, CAPTIONS) as captions_file,
        _Writer(samples, SAMPLES.with_metadata(texts_of)) as samples_file,
    ):
        for rows, stretch in zip(members.stretches(), texts.stretches()):
            made = _Samples(rows)
            table, is_bare = _distinct_captions(made, stretch, emphasis)
            first = _first_of_equal([table["set"].to_numpy(), *_keys(table["image"])])
            often = made.times * multiplier[made.number]
            sets = table["set"].combine_chunks()
            columns = [table["image"], sets, table["caption"], table["chance"], pa.array(often[np.cumsum(first) - 1])]
            columns += [by_set[name].take(sets) for name in own]
            columns.append(made.buckets.take(pa.array(np.cumsum(first) - 1)))
            samples_file.write(pa.table(columns, schema=SAMPLES))
            table = _without_sets(table)
            captions_file.write(table)
            empty = len(pc.unique(made.image.filter(pa.array(is_bare))))
            written.given += len(table) - empty
            written.empty += empty
            written.bare += rows["path"].filter(pa.array(is_bare[made.of_row])).chunks
            written.samples += len(often)
            written.often += float(often.sum())
    return written


class _Samples:
    """The distinct pairs of picture and set among rows of MEMBERS, sorted: image (g,), number (g,) of the set, times
    (g,), the sum of their rows'; buckets (g,); of_row (n,): the pair of each row."""

    def __init__(self, rows: pa.Table):
        keys = [rows["times"].to_numpy(), rows["set"].to_numpy(), *_keys(rows["image"])]
        order = np.lexsort(keys)  # by `times` too: the order in which numbers are added changes their sum
        keys = [key[order] for key in keys]
        first = _first_of_equal(keys[1:])
        begins = np.flatnonzero(first)
        self.image = rows["image"].combine_chunks().take(pa.array(order[begins]))
        self.number = keys[1][begins]
        self.times = np.add.reduceat(keys[0], begins) if len(begins) else np.empty(0)
        self.buckets = rows["buckets"].combine_chunks().take(pa.array(order[begins]))
        self.of_row = np.empty(len(rows), np.int64)
        self.of_row[order] = np.cumsum(first) - 1


def write_copies(copies: pa.Table, file: Path) -> None:
    """copies.csv: (path, copy_of), sorted."""
    rows = copies.sort_by([("copy_of", "ascending"), ("path", "ascending")])
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows.column_names)
        for batch in rows.to_batches(max_chunksize=_ROW_GROUP):
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns)))


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


def _distinct_captions(samples: _Samples, texts: pa.Table, emphasis: str) -> tuple[pa.Table, np.ndarray]:
    """Captions of a stretch as `image, set, caption, text, text_2, chance`, distinct (with the largest chance) and
    sorted, with an empty one for each of the samples that has none; and which those are, (g,) bool."""
    both = zip(texts["text"].to_pylist(), texts["text_2"].to_pylist())
    names = [captions.name(*pair, emphasis) for pair in both]
    schema = TEXTS.insert(2, CAPTIONS.field("caption"))
    given = texts.append_column("caption", pa.array(names, pa.binary(16))).select(schema.names)
    count = len(samples.number)
    fill = [samples.image, pa.array(samples.number)]
    fields = [*CAPTIONS.remove(0), SAMPLES.field("chance")]
    fill += [pa.repeat(pa.scalar(value, field.type), count) for value, field in zip((*_EMPTY, 1), fields)]
    rows = pa.concat_tables([given.cast(schema), pa.Table.from_arrays(fill, schema=schema)])
    is_fill = np.arange(len(rows)) >= len(given)
    keys = [*_keys(rows["caption"]), is_fill, rows["set"].to_numpy(), *_keys(rows["image"])]
    order = np.lexsort([-rows["chance"].to_numpy(), *keys])
    keys = [key[order] for key in keys]
    first_of_sample = _first_of_equal(keys[3:])
    # Given captions come before the empty one, so that stands only where it is the first of its sample.
    keep = _first_of_equal(keys) & (first_of_sample | ~keys[2])
    is_bare = np.zeros(count, bool)
    is_bare[order[keep & keys[2]] - len(given)] = True
    return rows.take(pa.array(order[keep])), is_bare


def _without_sets(table: pa.Table) -> pa.Table:
    """Rows of CAPTIONS, each once, sorted by image and caption."""
    table = table.select(CAPTIONS.names)
    keys = [*_keys(table["caption"]), *_keys(table["image"])]
    order = np.lexsort(keys)
    return table.take(pa.array(order[_first_of_equal([key[order] for key in keys])]))


_EMPTY = (captions.name("", None), "", None)


def _write(file: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with _Writer(file, schema) as writer:
        for table in tables:
            writer.write(table)


class _Writer:
    """Parquet in row groups of a fixed number of rows."""

    def __init__(self, file: Path, schema: pa.Schema):
        hashes = {"image", "caption", "path"}
        self._schema, self._waiting = schema, schema.empty_table()
        self._writer = pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[name for name in schema.names if name not in hashes],
            write_statistics=True,
        )

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *failed) -> None:
        with self._writer:
            if len(self._waiting) and failed == (None, None, None):
                self._writer.write_table(self._waiting.combine_chunks(), row_group_size=_ROW_GROUP)

    def write(self, table: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, table.cast(self._schema)])
        while len(self._waiting) >= _ROW_GROUP:
            self._writer.write_table(self._waiting.slice(0, _ROW_GROUP).combine_chunks(), row_group_size=_ROW_GROUP)
            self._waiting = self._waiting.slice(_ROW_GROUP)


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
