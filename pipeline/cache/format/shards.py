"""Shards: Parquet files whose rows are named by content, and whose bytes are a function of those rows alone.

Any Parquet reader opens them. Pages are plain and uncompressed, no column is nullable, and every column of a row group
is one page, so each column chunk is a short page header followed by a raw array whose place the file's footer gives.
What only some rows have (masks) is a column of those shards alone that hold such a row: the others' bytes know nothing
of it. There it is empty in rows without, whose own bytes are the same in both forms.
`open_shard` uses this: it finds every payload's offset without decoding a page, and training reads rows with one
system call each. Float16 latents and hidden states are noise to a compressor, so nothing is lost by storing them raw.

A row goes to the shard that the leading bits of its name say, and the number of shards follows from the number of
rows."""

import functools
import hashlib
import json
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cache.format import checksum, lookup
from pipeline.cache.format.about import about

FORMAT = 3  # raise it when a row's meaning or the layout of a shard changes
ROWS_PER_SHARD = 800  # 256 MB of SDXL's text rows (77 x 2048 float16 and 1280 float32), 210 MB of its latents
ROW_GROUP = 1024  # chosen with benchmarks/read_shards.py: one row group in all but the most crowded shard

_MAX_PAGE_HEADER = 256
_MARKED = np.uint64(0x9E3779B97F4A7C15)
_SEAL = 16  # bytes


class ShardError(ValueError):
    """A shard that is damaged, foreign, or not made by this module; the message names the file and the row."""


@dataclass(frozen=True)
class Kind:
    """One of the two caches: its columns, and for each payload column the columns whose product is its length."""

    name: str
    schema: pa.Schema
    # payload -> (columns that multiply to its number of elements, bytes per element)
    payloads: dict[str, tuple[tuple[str, ...], int]]
    # further columns of a shard with a row that has this payload: its name, that of the int32 column that is 1 in rows
    # that have it and 0 in others, and its place among `payloads` then
    optional: tuple[str, str, tuple[tuple[str, ...], int]] | None = None

    @functools.cached_property
    def whole(self) -> "Kind":
        """With the further columns, in front of the checksum."""
        if self.optional is None or self.mark in self.schema.names:
            return self
        name, mark, place = self.optional
        schema = self.schema.insert(len(self.schema) - 1, pa.field(mark, pa.int32(), nullable=False))
        schema = schema.insert(len(schema) - 1, pa.field(name, pa.binary(), nullable=False))
        return replace(self, schema=schema, payloads={**self.payloads, name: place})

    @property
    def mark(self) -> str:
        """The column that is 1 in rows with the optional payload."""
        return self.optional[1] if self.optional else ""


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


LATENTS = Kind(
    "latents",
    _schema(
        row=pa.binary(16),
        image=pa.binary(16),
        fingerprint=pa.string(),
        latent=pa.binary(),
        channels=pa.int32(),
        latent_height=pa.int32(),
        latent_width=pa.int32(),
        original_height=pa.int32(),
        original_width=pa.int32(),
        crop_top=pa.int32(),
        crop_left=pa.int32(),
        target_height=pa.int32(),
        target_width=pa.int32(),
        flip=pa.int32(),
        crop=pa.int32(),
        checksum=pa.binary(16),
    ),
    {"latent": (("channels", "latent_height", "latent_width"), 2)},
    ("mask", "masked", (("masked", "latent_height", "latent_width"), 1)),
)

TEXT = Kind(
    "text",
    _schema(
        row=pa.binary(16),
        fingerprint=pa.string(),
        context=pa.binary(),
        tokens=pa.int32(),
        width=pa.int32(),
        pooled=pa.binary(),
        pooled_width=pa.int32(),
        caption_tokens=pa.int32(),
        checksum=pa.binary(16),
    ),
    # The pooled embedding stays float32: 2.5 kB more on 320 kB a row, and no rounding before it enters every block.
    {"context": (("tokens", "width"), 2), "pooled": (("pooled_width",), 4)},
)

KINDS = {"latents": LATENTS, "text": TEXT}


GROUP = ("target_height", "target_width")  # latents of one name may have several buckets


def shard_count(rows: int) -> int:
    """The smallest power of two that leaves at most ROWS_PER_SHARD rows to a shard on average."""
    return 1 << max(0, (max(rows, 1) - 1) // ROWS_PER_SHARD).bit_length()


def shard_of(rows: np.ndarray, count: int) -> np.ndarray:
    """Shard of each name. rows: (n, 16) uint8; count: a power of two. Returns (n,) int64."""
    bits = count.bit_length() - 1
    high = np.ascontiguousarray(rows[:, :4]).view(">u4")[:, 0].astype(np.int64)
    return high >> (32 - bits)


def shard_name(index: int, count: int) -> str:
    return f"{index:05d}-of-{count:05d}.parquet"


# ---- writing ------------------------------------------------------------------------------------------------------


def write(path: str | Path, kind: Kind, rows: list[dict], fingerprint: dict) -> None:
    """Write rows as one shard. The caller makes it atomic.

    rows: one dict a row with every column but `fingerprint` and `checksum`, in any order; payloads are bytes, the
    optional one only in rows that have it.
    fingerprint: what the rows were made with; its digest stands in each row, and its text in the file's metadata,
    beside what each column means.
    """
    rows = sorted(rows, key=lambda row: (row["row"], *(row.get(name, 0) for name in GROUP)))
    if kind.optional and any(kind.optional[0] in row for row in rows):
        name, kind = kind.optional[0], kind.whole
        rows = [{name: b"", **row, kind.mark: int(name in row)} for row in rows]
    columns = {
        name: [row[name] for row in rows] for name in kind.schema.names if name not in ("fingerprint", "checksum")
    }
    numbers = {
        name: lookup.as_names(values)
        if pa.types.is_fixed_size_binary(kind.schema.field(name).type)
        else np.array(values, np.int32)
        for name, values in columns.items()
        if name not in kind.payloads
    }
    for payload, (factors, size) in kind.payloads.items():
        lengths = np.prod([numbers[factor].astype(np.int64) for factor in factors], axis=0) * size
        for row, length in zip(rows, lengths, strict=True):
            if len(row[payload]) != length:
                raise ValueError(
                    f"row {row['row'].hex()}: {payload} has {len(row[payload])} bytes, its numbers say {length}"
                )
    sums = np.array([_payload_sum(kind, row) for row in rows], np.uint64)
    write_columns(
        path,
        kind,
        numbers,
        {payload: pa.array(columns[payload], pa.binary()) for payload in kind.payloads},
        sums,
        fingerprint,
    )


def write_columns(
    path: str | Path,
    kind: Kind,
    numbers: dict[str, np.ndarray],
    payloads: dict[str, pa.Array],
    sums: np.ndarray,
    fingerprint: dict,
) -> None:
    """`write` for n rows that are columns already, sorted by name. numbers: names (n, 16) uint8 and numbers (n,) int32;
    sums: payload_sum of each row, (n,) uint64."""
    digest = fingerprint_digest(fingerprint)
    checksums = np.stack([_numbers_sum(kind, numbers, digest), sums], axis=1).astype("<u8")
    arrays = []
    for field in kind.schema:
        if field.name in payloads:
            arrays.append(payloads[field.name])
        elif field.name == "fingerprint":
            arrays.append(pa.array([digest] * len(sums), pa.string()))
        else:
            values = checksums if field.name == "checksum" else numbers[field.name]
            if values.ndim == 2:
                arrays.append(
                    pa.FixedSizeBinaryArray.from_buffers(field.type, len(sums), [None, pa.py_buffer(values.tobytes())])
                )
            else:
                arrays.append(pa.array(values, field.type))
    table = pa.table(arrays, schema=kind.schema)
    with pq.ParquetWriter(
        path,
        kind.schema,
        data_page_size=2**31 - 1,  # one page per column of a row group
        compression="none",
        use_dictionary=["fingerprint"],
        write_statistics=["row", "fingerprint"],
        store_schema=False,
        version="2.6",
        data_page_version="1.0",
    ) as writer:
        writer.add_key_value_metadata(
            {
                "format": str(FORMAT),
                "kind": kind.name,
                "fingerprint": canonical(fingerprint),
                "about": explanation(kind, fingerprint, kind.mark in numbers),
            }
        )
        if len(sums):
            writer.write_table(table, row_group_size=ROW_GROUP)
    _seal_footer(path)


def _seal_footer(path: str | Path) -> None:
    """Put the footer's hash in front of the footer, where Parquet readers do not look: pyarrow crashes on some damaged
    footers, so `open_shard` checks it before pyarrow sees it."""
    with open(path, "r+b") as file:
        file.seek(-8, os.SEEK_END)
        (length,) = struct.unpack("<i", file.read(4))
        start = file.seek(-8 - length, os.SEEK_END)
        footer = file.read()
        file.seek(start)
        file.write(hashlib.blake2b(footer, digest_size=_SEAL).digest() + footer)


def read_footer(path: Path, handle: int) -> pq.FileMetaData:
    """The file's metadata. Raises ShardError unless its footer is as it was written."""
    size = os.fstat(handle).st_size
    tail = os.pread(handle, 8, size - 8) if size >= 8 else b""
    length = struct.unpack("<i", tail[:4])[0] if len(tail) == 8 else -1
    if tail[4:] != b"PAR1" or not 0 < length <= size - 8 - _SEAL:
        raise ShardError(f"{path}: not a whole Parquet file")
    sealed = os.pread(handle, _SEAL + length + 8, size - 8 - length - _SEAL)
    footer = sealed[_SEAL:]
    if hashlib.blake2b(footer, digest_size=_SEAL).digest() != sealed[:_SEAL]:
        raise ShardError(f"{path}: its footer is damaged, or the file was not written by this cache")
    return pq.read_metadata(pa.BufferReader(footer))


def explanation(kind: Kind, fingerprint: dict, whole: bool = False) -> str:
    """The text under `about` in a shard's metadata; of the `whole` kind or without what is optional."""
    return json.dumps(about(kind.name, fingerprint, whole), ensure_ascii=True)


def canonical(fingerprint: dict) -> str:
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def fingerprint_digest(fingerprint: dict) -> str:
    return hashlib.blake2b(canonical(fingerprint).encode(), digest_size=16).hexdigest()


# ---- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """The numbers of a shard's rows, and where their payloads lie."""

    path: Path
    kind: Kind
    fingerprint: dict
    columns: dict[str, np.ndarray]  # names (n, 16) uint8, numbers (n,) int32, checksum (n, 2) uint64
    offsets: dict[str, np.ndarray]  # payload -> (n,) int64, bytes from the file's start
    lengths: dict[str, np.ndarray]  # payload -> (n,) int64, bytes

    def __len__(self) -> int:
        return len(self.columns["row"])


def open_shard(path: str | Path, kind: Kind) -> Shard:
    """Read a shard's numbers and find its payloads, without decoding or reading a payload.

    Raises ShardError when the file is damaged (numbers or names), of another kind or format, or laid out otherwise.
    """
    path = Path(path)
    with open(path, "rb", buffering=0) as file:
        return _open(path, kind, file.fileno(), read_footer(path, file.fileno()))


def _open(path: Path, kind: Kind, handle: int, metadata: pq.FileMetaData) -> Shard:
    file_size = os.fstat(handle).st_size
    stored = metadata.metadata or {}
    if stored.get(b"kind", b"").decode() != kind.name or stored.get(b"format", b"").decode() != str(FORMAT):
        found = {key: stored.get(key, b"absent").decode(errors="replace") for key in (b"kind", b"format")}
        raise ShardError(
            f"{path}: kind {found[b'kind']}, format {found[b'format']}; wanted {kind.name}, format {FORMAT}"
        )
    fingerprint = json.loads(stored[b"fingerprint"])
    digest = fingerprint_digest(fingerprint)
    if metadata.num_columns == len(kind.whole.schema):
        kind = kind.whole
    names = kind.schema.names
    # Each begins with an empty array, for the shard without rows.
    arrays: dict[str, list[np.ndarray]] = {
        field.name: [
            np.zeros(
                (0, 16) if pa.types.is_fixed_size_binary(field.type) else 0,
                np.uint8 if pa.types.is_fixed_size_binary(field.type) else np.int32,
            )
        ]
        for field in kind.schema
        if field.name not in kind.payloads and field.name != "fingerprint"
    }
    offsets: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in kind.payloads}
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        chunks = {name: row_group.column(index) for index, name in enumerate(names)}
        if {chunk.path_in_schema for chunk in chunks.values()} != set(names) or row_group.num_columns != len(names):
            raise ShardError(f"{path}: its columns are not those of {kind.name}")
        statistics = chunks["fingerprint"].statistics
        if statistics is None or statistics.min != digest or statistics.max != digest:
            raise ShardError(f"{path}: a row's fingerprint is not the one in the file's metadata")
        rows = row_group.num_rows
        for name, chunk in chunks.items():
            if name in kind.payloads or name == "fingerprint":
                continue
            fixed = pa.types.is_fixed_size_binary(kind.schema.field(name).type)
            size = rows * (16 if fixed else 4)
            raw = np.frombuffer(os.pread(handle, size, _array_start(path, chunk, size, file_size)), np.uint8)
            if len(raw) != size:
                raise ShardError(f"{path}: ends within column {name}")
            arrays[name].append(raw.reshape(rows, 16) if fixed else raw.view("<i4"))
        for name, (factors, size) in kind.payloads.items():
            lengths = np.prod([arrays[factor][-1].astype(np.int64) for factor in factors], axis=0) * size
            ends = np.cumsum(lengths + 4)  # each value is preceded by its length
            start = _array_start(path, chunks[name], int(ends[-1]), file_size)
            offsets[name].append(start + ends - lengths)
    columns = {name: np.concatenate(parts) for name, parts in arrays.items()}
    columns["checksum"] = columns["checksum"].view("<u8")
    wrong = np.flatnonzero(_numbers_sum(kind, columns, digest) != columns["checksum"][:, 0])
    if len(wrong):
        raise ShardError(
            f"{path}: row {columns['row'][wrong[0]].tobytes().hex()} is damaged: its numbers do not fit its checksum"
        )
    lengths = {
        n: np.prod([columns[f].astype(np.int64) for f in fs], axis=0) * size for n, (fs, size) in kind.payloads.items()
    }
    return Shard(
        path, kind, fingerprint, columns, {name: np.concatenate(parts) for name, parts in offsets.items()}, lengths
    )


def _numbers_sum(kind: Kind, columns: dict[str, np.ndarray], fingerprint: str) -> np.ndarray:
    others = ("fingerprint", "checksum", kind.mark)
    hold = [name for name in kind.schema.names if name not in kind.payloads and name not in others]
    sums = checksum.numbers_sum([columns[name] for name in hold], fingerprint)
    return sums ^ (columns[kind.mark].astype(np.uint64) * _MARKED) if kind.mark in columns else sums


def _payload_sum(kind: Kind, row: dict) -> int:
    absent = kind.optional[0] if not row.get(kind.mark) and kind.optional else ""
    return checksum.payload_sum(*(row[payload] for payload in kind.payloads if payload != absent))


def _array_start(path: Path, chunk: pq.ColumnChunkMetaData, size: int, file_size: int) -> int:
    """Where the raw array of `size` bytes begins in a column chunk of one plain page: the page's header precedes it."""
    header = chunk.total_compressed_size - size
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or not 0 < header <= _MAX_PAGE_HEADER:
        raise ShardError(
            f"{path}: column {chunk.path_in_schema} is not one plain page; only files of this cache are read here"
        )
    start = chunk.data_page_offset + header
    if not 0 <= size <= size + start <= file_size:
        raise ShardError(f"{path}: column {chunk.path_in_schema} lies outside the file")
    return start


def read_row(shard: Shard, index: int, handle: int) -> dict:
    """One row as `write` takes it, checked. handle: the open file. Raises ShardError when the payload is damaged."""
    row = {
        name: column[index].tobytes() if column.ndim == 2 else int(column[index])
        for name, column in shard.columns.items()
    }
    for name in shard.kind.payloads:
        row[name] = os.pread(handle, int(shard.lengths[name][index]), int(shard.offsets[name][index]))
    if _payload_sum(shard.kind, row) != int(shard.columns["checksum"][index, 1]):
        raise ShardError(f"{shard.path}: row {row['row'].hex()} is damaged: its payload does not fit its checksum")
    if not row.pop(shard.kind.mark, 1):
        del row[shard.kind.optional[0]]
    del row["checksum"]
    return row
