"""WebDataset tars as a source, read in place: key.jpg with key.txt (one caption) and key.json (text or caption,
text_2).

Members are found by the offsets of their data and read with one system call, so nothing is unpacked and threads can
share a source. Pictures are named `shard.tar!member`."""

import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.data import captions
from pipeline.data.part import PICTURES, Part, SourceError, inside, make_part, stamp

_MARK = ".tar!"


@dataclass(frozen=True)
class WebDataset:
    root: str
    tars: tuple[str, ...]  # paths in root, sorted

    def read(self, path: str) -> bytes:
        """The bytes of a picture. Raises SourceError when there is no such member."""
        tar, mark, member = path.partition(_MARK)
        place = inside(self.root, tar + mark[:-1])
        members = _members(place, stamp(os.stat(place)))
        row = members.find(member)
        if row is None:
            raise SourceError(f"{place} has no member {member!r}; run the index stage again")
        return members.read(row)

    def parts(self) -> Iterator[Part]:
        """One part for each tar, pictures in the order of their names. Raises SourceError, CaptionError."""
        for tar in self.tars:
            place = inside(self.root, tar)
            status = stamp(os.stat(place))
            yield _part(tar, place, status)


class _Members:
    """Where the files of a tar lie. Arrays, not a dict, because a data set can have thousands of tars."""

    def __init__(self, place: str, members: dict[bytes, tuple[int, int]]):
        self.place = place
        self.names = np.array(sorted(members), np.bytes_)
        self.extents = np.array([members[name] for name in sorted(members)], np.int64).reshape(-1, 2)

    def find(self, name: str) -> int | None:
        wanted = name.encode()
        row = int(np.searchsorted(self.names, wanted))
        return row if row < len(self.names) and self.names[row] == wanted else None

    def read(self, row: int) -> bytes:
        offset, size = map(int, self.extents[row])
        handle = os.open(self.place, os.O_RDONLY)
        try:
            data = os.pread(handle, size, offset)
            while len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
                data += more
        finally:
            os.close(handle)
        return data


@lru_cache(maxsize=512)
def _members(place: str, status: tuple[int, int, int]) -> _Members:
    """The index of a tar in this state. Of two members of one name the last counts, as it does for tar."""
    members = {}
    try:
        with tarfile.open(place, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > status[0]:
                        raise SourceError(f"{place} ends within {member.name}: it is truncated; get the file again")
                    members[member.name.encode()] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise SourceError(
            f"{place} is not a whole, uncompressed tar: {error}; unpack compression, or get the file again"
        ) from None
    except UnicodeEncodeError:
        raise SourceError(f"{place}: a member's name is not UTF-8; write the tar again with other names") from None
    return _Members(place, members)


def _part(tar: str, place: str, status: tuple[int, int, int]) -> Part:
    members = _members(place, status)
    paths, texts, others = [], [], []
    rows_of_key, texts_of_key = defaultdict(list), []
    for row, name in enumerate(name.decode() for name in members.names):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")  # WebDataset: the key ends at the first dot of the file's name
        key = (folder, stem)
        if base.startswith("."):
            continue
        if f".{extension.lower()}" in PICTURES:
            rows_of_key[key].append(len(paths))
            paths.append(f"{tar}!{name}")
        elif extension in ("txt", "json"):
            texts_of_key.append((key, row, extension, f"{place}!{name}"))
        else:
            others.append(f"{tar}!{name}")
    for key, row, extension, where in texts_of_key:
        if key not in rows_of_key:
            others.append(where)
            continue
        parse = captions.whole if extension == "txt" else captions.record
        for pair in parse(members.read(row), where):
            texts += [(picture, *pair) for picture in rows_of_key[key]]
    return make_part(place, paths, np.tile(np.array(status, np.int64), (len(paths), 1)), texts, others)
