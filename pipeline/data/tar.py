"""What a tar holds and where it is damaged.

Python's tarfile ends in silence at a header that it cannot read. Here the walk goes on behind it: each byte of the file
belongs to a member that was found, to an end mark, or to a damage that is reported. Headers are read by tarfile
(POSIX.1-2001 pax, ustar, GNU)."""

import contextlib
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

BLOCK = 512
_RECORD = 20 * BLOCK  # GNU tar's, Python's and others' files end at a multiple of this
_END = 2 * BLOCK  # zeros that mark the end
_LONGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records; longer ones are none
_LARGEST_OCTAL = 8 << 30  # from this size on a header cannot hold it in octal digits
_SCAN = 1 << 20

Read = Callable[[int, int], bytes]


class Member(NamedTuple):
    name: str  # bytes that are no UTF-8 as surrogates
    start: int  # of its first header
    data: int
    size: int
    odd: str | None  # what it is, if not a plain file: "a link to x", "sparse"; its data cannot be taken as they stand

    @property
    def end(self) -> int:
        return self.data + _whole_blocks(self.size)


class Damage(NamedTuple):
    """Bytes [start, end) that hold no member that could be read."""

    start: int
    end: int
    reason: str
    cut: bool = False  # the file ends where it should not, so what is lost is not in it


@dataclass
class Contents:
    size: int
    members: list[Member] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)  # where a further tar begins, as `cat a.tar b.tar` makes it
    ended: bool = False  # by zeros; some writers leave them out
    behind: int = 0  # bytes behind those, too few to be a header
    kept: dict[int, bytes] = field(default_factory=dict)  # of members that were read on the way, by Member.data


class _Unreadable(Exception):
    """No member can be read at this place. `resume`: from where on to look for the next one; `names_next`: what cannot
    be read held the name of the member behind it."""

    def __init__(self, reason: str, resume: int, cut: bool = False, names_next: bool = False):
        super().__init__(reason)
        self.reason, self.resume, self.cut, self.names_next = reason, resume, cut, names_next


def contents(path: str) -> Contents:
    """Walk a tar. It need not be one: then all of it is damage. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return walk(lambda size, at: os.pread(handle, size, at), os.fstat(handle).st_size)
    finally:
        os.close(handle)


def walk(read: Read, size: int, keep: Callable[[Member], bool] = lambda member: False) -> Contents:
    """The same of any bytes: read(size, at) gives `size` of them from `at` on, fewer at their end. The bytes of members
    that are to be kept are read with their headers."""
    found = Contents(size)
    at = piece = 0  # the place of the next header; where this tar begins, if several were put together
    damaged = nameless = False  # what lies before `at`; the name of the member at `at` is lost with it
    while True:
        after_zeros = _zeros_end(read, at, size) if at < size else size
        member = error = None
        if after_zeros < size:
            try:
                member = _member(read, after_zeros, size, damaged, nameless)
            except _Unreadable as caught:
                error = caught
        if (after_zeros > at or error or at >= size) and (inner := _header_in_last(read, found, at)):
            last = found.members.pop()
            _add(found, Damage(last.start, inner, f"bytes of {last.name} are missing"))
            at, damaged, nameless = inner, True, False
            continue
        is_end = _is_end(at - piece, after_zeros - piece, (size - piece) % _RECORD == 0)
        if after_zeros == size:
            found.ended |= size - at >= _END
            if size - at >= _END + _RECORD:
                _add(found, Damage(at, size, "zeros, more than an end mark has"))
            return found
        if error:
            at = _damage(read, found, at, after_zeros, is_end, error)
            damaged, nameless = True, error.names_next
            continue
        if after_zeros > at and is_end:
            found.joined.append(after_zeros)
            piece = after_zeros
        elif after_zeros > at:
            _add(found, Damage(at, after_zeros, "zeros in the place of a header"))
        found.members.append(member)
        if keep(member):
            found.kept[member.data] = read(member.size, member.data)
        at, damaged, nameless = member.end, False, False


def _header_in_last(read: Read, found: Contents, at: int) -> int | None:
    """The place of a header that begins within the data of the member that ends at `at`: bytes before it are
    missing."""
    last = found.members[-1] if found.members and found.members[-1].end == at else None
    if last is None or last.name.lower().endswith(".tar"):
        return None
    inner = _next_header(read, last.data, min(at + BLOCK, found.size))
    return inner if inner < min(at, found.size) else None


def _damage(read: Read, found: Contents, at: int, after_zeros: int, is_end: bool, error: _Unreadable) -> int:
    """Note the damage at `at` (or behind the zeros there) and return the place of the next header."""
    size, start, reason = found.size, at, error.reason
    following = _next_header(read, error.resume, size)
    if after_zeros > at and following == size and is_end:
        found.ended = True
        if size - after_zeros < BLOCK:
            found.behind = size - after_zeros
            return size
        start, reason = after_zeros, "bytes behind the end mark that are no header"
    elif after_zeros > at:
        reason = "zeros in the place of a header"
    _add(found, Damage(start, following, reason, error.cut and following == size))
    return following


def _add(found: Contents, damage: Damage) -> None:
    """Damages without a member between them are one."""
    if found.damages and found.damages[-1].end == damage.start:
        before = found.damages.pop()
        damage = Damage(before.start, damage.end, before.reason, damage.cut)
    found.damages.append(damage)


def _member(read: Read, start: int, size: int, damaged: bool, nameless: bool) -> Member:
    """The member whose first header is at `start`. `damaged`: what is before it is; `nameless`: its name was there.
    Raises _Unreadable."""
    at, records, name = start, {}, None
    while True:
        block = read(BLOCK, at)
        if len(block) < BLOCK:
            raise _Unreadable("the file ends within a header", start + 1, cut=True)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _Unreadable(f"no header that can be read ({error})", start + 1, names_next=_extends(block)) from None
        data = at + BLOCK
        if header.size < 0:
            raise _Unreadable("a header with a size below 0", start + 1)
        if header.type not in (b"L", b"K", b"x", b"X", b"g"):
            break
        if header.size > _LONGEST_EXTENSION:
            raise _Unreadable("an extension header of more than 1 MiB", start + 1)
        if data + header.size > size:
            raise _Unreadable("the file ends within an extension header", start + 1, cut=True)
        body = read(header.size, data)
        if header.type == b"L":
            name = body.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif header.type in (b"x", b"X"):
            try:
                records |= _records(body)
            except ValueError as error:
                raise _Unreadable(str(error), data, names_next=b"path=" in body) from None
        at = data + _whole_blocks(header.size)
    if name is None and b"path" not in records and (nameless or damaged and _may_be_short(block)):
        raise _Unreadable("a header whose long name is lost", start + 1)
    name = records[b"path"].decode("utf-8", "surrogateescape") if b"path" in records else name or header.name
    if not name or "\0" in name:
        raise _Unreadable("a header without a name, or with a zero byte in it", start + 1)
    if header.type == tarfile.GNUTYPE_SPARSE:
        more = block[482]
        while more:  # a GNU sparse member's map goes on in further blocks
            extra = read(BLOCK, data)
            if len(extra) < BLOCK:
                raise _Unreadable("the file ends within a header", data, cut=True)
            data, more = data + BLOCK, extra[504]
    has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
    length = header.size if has_data else 0
    if has_data and b"size" in records:
        try:
            length = _size(records[b"size"], header.size)
        except ValueError as error:
            raise _Unreadable(str(error), data) from None
    if data + length > size:
        raise _Unreadable(f"the file ends within {name}", data, cut=True)
    return Member(name, start, data, length, _odd(header, records))


def _odd(header: tarfile.TarInfo, records: dict[bytes, bytes]) -> str | None:
    if header.issym() or header.islnk():
        target = records.get(b"linkpath", b"").decode("utf-8", "surrogateescape") or header.linkname
        return f"a link to {target}"
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
        return "sparse"
    if header.isdir():
        return "a folder"
    return None if header.isreg() else "a special file"


def _records(body: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: "length key=value\\n" each, the length that of the whole record. Raises
    ValueError."""
    found = {}
    body = body.rstrip(b"\0")
    while body:
        digits, space, _ = body[:20].partition(b" ")
        length = int(digits) if digits.isdigit() and space else 0
        record = body[len(digits) + 1 : length]
        if length > len(body) or not record.endswith(b"\n") or b"=" not in record:
            raise ValueError("pax records that cannot be read")
        key, _, value = record[:-1].partition(b"=")
        found[key] = value
        body = body[length:]
    return found


def _size(record: bytes, header_size: int) -> int:
    """The size in a pax record, which nothing but the header's own (where that holds it) can check. Raises
    ValueError."""
    if not (record.isdigit() and len(record) < 19):
        raise ValueError("a pax record with a size that is no number")
    size = int(record)
    if size != header_size and header_size and size < _LARGEST_OCTAL:
        raise ValueError(f"two sizes, {size} in the pax record and {header_size} in the header")
    return size


def _may_be_short(block: bytes) -> bool:
    """Whether the name field is full and nothing else holds the name: a damaged header before it may have held more."""
    return b"\0" not in block[:100] and not block[345:500].strip(b"\0")


def _extends(block: bytes) -> bool:
    """Whether a header that cannot be read seems to be one of an extension."""
    return block[156:157] in (b"L", b"x", b"X") or b"PaxHeader" in block[:100] or b"@LongLink" in block[:100]


def _is_end(zeros: int, next_tar: int, padded: bool) -> bool:
    """Whether zeros that begin at `zeros` of a tar are its end, when another tar begins at `next_tar`: two blocks, or
    as many more as fill a record. Two that do not end a record are a hole where the file as a whole is `padded` to
    records, as it hardly would be with a tar in it that is not."""
    fills = next_tar == -(-(zeros + _END) // _RECORD) * _RECORD
    return fills or next_tar == zeros + _END and not padded


def _zeros_end(read: Read, at: int, size: int) -> int:
    """The end of the zero blocks that begin at `at`; `size` when there is nothing else."""
    if read(BLOCK, at).strip(b"\0"):
        return at
    for offset, chunk in _chunks(read, at, size):
        rest = chunk.lstrip(b"\0")
        if rest:
            return offset + (len(chunk) - len(rest)) // BLOCK * BLOCK
    return size


def _next_header(read: Read, at: int, size: int) -> int:
    """The place of the next header from `at` on, at any byte; `size` when there is none."""
    for offset, chunk in _chunks(read, at, size, overlap=BLOCK):
        place = chunk.find(b"ustar", 257)
        while 0 <= place <= len(chunk) - (BLOCK - 257):
            block = chunk[place - 257 : place + BLOCK - 257]
            with contextlib.suppress(tarfile.HeaderError):
                if tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name:
                    return offset + place - 257
            place = chunk.find(b"ustar", place + 1)
    return size


def _chunks(read: Read, at: int, size: int, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) from `at` on; multiples of a block long, each again with the last `overlap` bytes of the one
    before."""
    while at < size:
        chunk = read(min(_SCAN, size - at), at)
        yield at, chunk
        if at + len(chunk) >= size or not chunk:
            return
        at += len(chunk) - overlap


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
