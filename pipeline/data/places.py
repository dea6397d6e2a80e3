"""The files that a source reads in place: on this disk by path, far away by URL."""

import hashlib
import json
import os
import zlib

import pyarrow as pa

from pipeline import store
from pipeline.data import far, tar
from pipeline.data.kinds import TEXTS, extension
from pipeline.data.part import is_far, stamp

_DIGEST = 16
_LONGEST = 1 << 16  # bytes of a caption that is remembered


def status(place: str) -> far.Stamp:
    """The stamp of a file on this disk; far ones have theirs from their listing."""
    return stamp(os.stat(place))


def absolute(place: str) -> str:
    return place if is_far(place) else os.path.abspath(place)


def read(place: str, size: int, at: int) -> bytes:
    """`size` bytes from `at` on; fewer where a file on this disk ends. Raises OSError, SourceError."""
    if is_far(place):
        return far.read(place, size, at)
    handle = os.open(place, os.O_RDONLY)
    try:
        data = os.pread(handle, size, at)
        while len(data) < size and (more := os.pread(handle, size - len(data), at + len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def parquet(place: str, status: far.Stamp | None) -> str | pa.PythonFile:
    """What pyarrow opens. A far file's status must be given."""
    return pa.PythonFile(far.RangeFile(far.Far(place, status)), "r") if is_far(place) else place


def contents(place: str, status: far.Stamp) -> tar.Contents:
    """What a tar holds. That of a far one is remembered in the store, with its captions. Raises OSError, SourceError."""
    if not is_far(place):
        return tar.contents(place)
    name = hashlib.blake2b(f"{place} {status}".encode(), digest_size=16).hexdigest()
    file = store.root() / "index" / f"{name}.tar"
    found = _remembered(file) if status[2] == 0 else None
    if found is None:
        found = tar.walk(far.Blocks(far.Far(place, status)), status[0], _is_text)
        kept = {at: data.decode("latin-1") for at, data in found.kept.items()}
        parts = [found.size, found.members, found.damages, found.joined, found.ended, found.behind, kept]
        body = zlib.compress(json.dumps(parts).encode())
        digest = hashlib.blake2b(body, digest_size=_DIGEST).digest()
        store.keep(file, lambda temporary: temporary.write_bytes(digest + body))
    return found


def _remembered(file) -> tar.Contents | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.blake2b(data[_DIGEST:], digest_size=_DIGEST).digest() != data[:_DIGEST]:
        return None
    size, members, damages, *rest, kept = json.loads(zlib.decompress(data[_DIGEST:]))
    return tar.Contents(
        size, [tar.Member(*one) for one in members], [tar.Damage(*one) for one in damages], *rest,
        {int(at): data.encode("latin-1") for at, data in kept.items()},
    )  # fmt: skip


def _is_text(member: tar.Member) -> bool:
    """Whether it is a caption, each of which would be a request by itself."""
    return member.size <= _LONGEST and extension(member.name) in TEXTS | {".json"}
