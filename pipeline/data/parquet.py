"""Parquet files as a source, as Hugging Face data sets have them, read in place.

Columns: `image`, a struct with `bytes` or a binary; `text`, a string or a list of strings; `text_2`, `repeats`,
`weight`, `focus` and `bbox` if wanted. The first two may have other names. Strings and bytes may be large, views or in a dictionary.
Pictures are named `file.parquet#row`. A row can only be read with its row group, so neighbours are cheap to read in
order."""

import contextlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import captions, places
from pipeline.data.far import Stamp
from pipeline.data.part import Part, SourceError, Unmatched, beside, is_far, make_part, place_in, replaced
from pipeline.data.said import FOCUS, TIMES, Focus


@dataclass(frozen=True)
class ParquetFiles:
    root: str
    files: tuple[str, ...]  # paths in root, sorted
    others: tuple[str, ...] = ()  # files beside them
    unmatched: tuple[Unmatched, ...] = ()
    image_column: str = "image"
    caption_column: str = "text"
    stamps: tuple[Stamp, ...] = ()  # of files that are far away
    sets: tuple[str, ...] = ()  # URLs of what lies beside them there and says what their sets are

    @property
    def part_count(self) -> int:
        return len(self.files)

    def read(self, path: str) -> bytes:
        """The bytes of a picture; none for a null. Raises SourceError when there is no such row."""
        place = self.file(path)
        status = self._status(path.rpartition("#")[0])
        starts = _row_group_starts(place, status, self.image_column, self.caption_column)
        row = int(path.rpartition("#")[2])
        if row >= starts[-1]:
            raise SourceError(f"{place} has {starts[-1]} rows, no row {row}: {replaced(place)}")
        group = int(np.searchsorted(starts, row, side="right")) - 1
        pictures = _pictures(place, status, group, self.image_column)
        if len(pictures) != starts[group + 1] - starts[group]:
            raise _damaged(place, f"row group {group} has {len(pictures)} pictures, not as many as its footer says")
        return pictures[row - int(starts[group])].as_py() or b""

    def file(self, path: str) -> str:
        return place_in(self.root, path.rpartition("#")[0])

    def _status(self, name: str) -> Stamp:
        if not self.stamps:
            return places.status(place_in(self.root, name))
        at = bisect_left(self.files, name)
        if self.files[at : at + 1] != (name,):
            raise SourceError(f"{self.root} has no {name}; it was there when the index ran: run `dvc repro` again")
        return self.stamps[at]

    def parts(self) -> Iterator[Part]:
        """One part for each file. Raises SourceError, CaptionError."""
        for name in self.files:
            place = place_in(self.root, name)
            status = self._status(name)
            rows = int(_row_group_starts(place, status, self.image_column, self.caption_column)[-1])
            paths = [f"{name}#{row}" for row in range(rows)]
            stamps = np.tile(np.array(status, np.int64), (rows, 1))
            found, times, focus = _captions(place, status, rows, self.caption_column)
            of_column = "" if self.image_column == "image" else f", column {self.image_column}"
            yield make_part(places.absolute(place) + of_column, paths, stamps, found, [], times=times, focus=focus)
        if self.others or self.unmatched:
            yield beside(self.root, self.others, self.unmatched)


def holds_pictures(place: str, image_column: str = "image", status: Stamp | None = None) -> bool:
    """Whether a Parquet file has a column of pictures. img2dataset's, for one, holds what it knows about those in the
    tar of the same name. Raises SourceError."""
    with _open(place, status) as file:
        schema = file.schema_arrow
        return image_column in schema.names and _bytes_type(schema.field(image_column).type) is not None


@contextlib.contextmanager
def _open(place: str, status: Stamp | None) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(places.parquet(place, status), memory_map=True, pre_buffer=is_far(place)) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name that is no UTF-8
        raise _damaged(place, error) from None


@lru_cache(maxsize=4096)
def _row_group_starts(place: str, status: Stamp, image_column: str, caption_column: str) -> np.ndarray:
    """(row groups + 1,) int64: the first row of each row group, and the number of rows. Checks the columns."""
    with _open(place, status) as file:
        names = file.schema_arrow.names
        if image_column not in names or caption_column not in names:
            raise SourceError(
                f"{place} has the columns {', '.join(names)}; wanted {image_column} and {caption_column} "
                "(data.image_column and data.caption_column say which)"
            )
        image = file.schema_arrow.field(image_column).type
        if _bytes_type(image) is None:
            raise SourceError(f"{place}: the column {image_column} is {image}; wanted a struct with bytes, or a binary")
        return np.cumsum([0] + [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])


def _bytes_type(image: pa.DataType) -> pa.DataType | None:
    """The type of the bytes in a column of pictures; None when it holds none."""
    held = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
    plain = held.value_type if pa.types.is_dictionary(held) else held
    is_bytes = pa.types.is_binary(plain) or pa.types.is_large_binary(plain) or pa.types.is_binary_view(plain)
    return held if is_bytes else None


@lru_cache(maxsize=4)
def _pictures(place: str, status: Stamp, group: int, image_column: str) -> pa.ChunkedArray:
    """The bytes of all pictures of a row group."""
    with _open(place, status) as file:
        column = file.read_row_group(group, columns=[image_column]).column(image_column)
        return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def _captions(
    place: str, status: Stamp, rows: int, caption_column: str
) -> tuple[list[tuple[int, str, str | None, str]], dict[int, float], dict[int, Focus]]:
    """Captions as make_part takes them, and of the pictures of which a column says it, how often an epoch has them and
    their centres of interest."""
    found, times, focus, row = [], {}, {}, 0
    with _open(place, status) as file:
        wanted = (caption_column, "text_2", *TIMES, *FOCUS)
        columns = [name for name in dict.fromkeys(wanted) if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            try:
                values = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise captions.CaptionError(f"{place}: a text from row {row} on is not UTF-8: {error}") from None
            for value in values:
                where = f"{place}#{row}"
                second = value.get("text_2") if caption_column != "text_2" else None
                found += [(row, *pair, "") for pair in captions.pairs(value[caption_column], second, where)]
                also = captions.said({name: value.get(name) for name in (*TIMES, *FOCUS)}, where)
                times |= {} if also.times is None else {row: also.times}
                focus |= {} if also.focus is None else {row: also.focus}
                row += 1
    if row != rows:
        raise _damaged(place, f"{row} texts, and its footer says {rows}")
    return found, times, focus


def _damaged(place: str, what: object) -> SourceError:
    return SourceError(f"{place} is not a whole Parquet file: {what}; get the file again")
