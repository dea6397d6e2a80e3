"""What was found out about pictures in earlier runs, so that only new and changed files are read again.

One file for each part of a source, in the store. It holds a table of the pictures with the stamps of their files, and
is used for a picture only when the stamp is the same to the nanosecond. Deleting it costs time and nothing else."""

import contextlib
import hashlib
import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import store
from pipeline.data import images, near, png, tiff
from pipeline.data.part import STAMP

FOUND = pa.schema(  # about one picture, from its bytes alone
    [
        pa.field("image", pa.binary(16), nullable=False),  # blake2b of the bytes
        pa.field("width", pa.int32()),  # of the upright picture; null when it could not be decoded
        pa.field("height", pa.int32()),
        pa.field("rejected", pa.string()),  # why it could not be decoded
        pa.field("profile_ignored", pa.bool_(), nullable=False),
        pa.field("phash", pa.uint64()),  # near.perceptual_hash
        pa.field("transparent", pa.bool_(), nullable=False),  # in some pixel
    ]
)
_STAMPS = [pa.field(name, pa.int64(), nullable=False) for name in STAMP]
_SCHEMA = pa.schema([pa.field("path", pa.string(), nullable=False), *_STAMPS, *FOUND])
_SETTLED_NS = 2_000_000_000  # file systems keep times as coarsely as this: a younger file may change and keep its times
_BOUND = 2 << 30  # bytes of all memos together
_DIGEST = 32


def load(place: str, rules: str, paths: pa.StringArray, stamps: np.ndarray) -> tuple[np.ndarray, pa.Table]:
    """What is known about pictures whose files have not changed: their indices (k,) into `paths`, and a FOUND table of
    k rows.

    A memo that is broken, or was made under other `rules`, is as good as none."""
    table = _read(_file(place), rules)
    if table is None:
        return np.empty(0, np.int64), FOUND.empty_table()
    rows = pc.index_in(paths, value_set=table["path"].combine_chunks()).to_numpy(zero_copy_only=False)
    known = np.flatnonzero(~np.isnan(rows))
    rows = rows[known].astype(np.int64)
    remembered = np.stack([table[field.name].to_numpy() for field in _STAMPS], axis=1)
    same = (remembered[rows] == stamps[known]).all(axis=1)
    return known[same], table.select(FOUND.names).take(pa.array(rows[same])).cast(FOUND)


def save(place: str, rules: str, paths: pa.StringArray, stamps: np.ndarray, found: pa.Table, now_ns: int) -> None:
    """Keep what was found about pictures that had settled at `now_ns`, the time before they were read."""
    settled = np.flatnonzero(stamps[:, 2] < now_ns - _SETTLED_NS)  # by the ctime, which nobody can set
    columns = [paths.take(pa.array(settled)), *(pa.array(column) for column in stamps[settled].T)]
    found = found.take(pa.array(settled)).combine_chunks()
    table = pa.Table.from_arrays([*columns, *found.columns], schema=_SCHEMA).replace_schema_metadata({"rules": rules})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body = sink.getvalue()
    digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
    store.keep(_file(place), lambda temporary: temporary.write_bytes(digest + body.to_pybytes()))
    _prune(_file(place))


def rules(max_pixels: int) -> str:
    """What else than its bytes decides what is found about a picture. Another decoder may read what this one
    rejects."""
    code = b"".join(
        Path(file).read_bytes() for file in (images.__file__, png.__file__, tiff.__file__, near.__file__, __file__)
    )
    return f"{max_pixels} {metadata.version('pillow')} {metadata.version('imagehash')} {hashlib.blake2b(code, digest_size=16).hexdigest()}"


def mark(place: str) -> Path:
    """A file that is there while a few pictures of this part are decoded, and names the one that is."""
    return _file(place).with_suffix(".looking")


def _file(place: str) -> Path:
    return store.root() / "index" / f"{hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()}.memo"


def _read(file: Path, rules: str) -> pa.Table | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    body = pa.py_buffer(data)[_DIGEST:]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != data[:_DIGEST]:
        print(f"index: the memo {file} is damaged and is not used; all pictures are read again", flush=True)
        return None
    table = pa.ipc.open_stream(body).read_all()
    if table.schema.metadata != {b"rules": rules.encode()}:
        print("index: max_pixels, the decoder or its code has changed; all pictures are read again", flush=True)
        return None
    with contextlib.suppress(FileNotFoundError):  # another run may prune it
        os.utime(file)  # for _prune: this one is in use
    return table


def _prune(keep: Path) -> None:
    """Remove the memos that were not used for the longest time, down to the bound."""
    total = 0
    files = []
    for file in store.found(keep.parent, "*.memo"):
        with contextlib.suppress(FileNotFoundError):
            files.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    for _, size, file in sorted(files, reverse=True):
        total += size
        if total > _BOUND and file != keep:
            file.unlink(missing_ok=True)
