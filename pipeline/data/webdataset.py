"""WebDataset tars as a source, read in place: key.jpg with key.txt or key.jpg.txt (one caption) and key.json (text or
caption, text_2, repeats, weight, focus, bbox), and masks (key.mask.png).

Members are found by the offsets of their data and read with one system call, so nothing is unpacked and threads can
share a source. Pictures are named `shard.tar!member`."""

import math
import posixpath
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.data import captions, masks, places, tar
from pipeline.data.far import Stamp
from pipeline.data.kinds import PICTURES, TEXTS, extension, mask_stem, not_read
from pipeline.data.match import match
from pipeline.data.part import (
    Lost,
    Part,
    SourceError,
    Unmatched,
    beside,
    make_part,
    place_in,
    replaced,
    shown,
    unread_caption,
)
from pipeline.data.said import Focus

_MARK = re.compile(r"(?<=\.tar)!", re.IGNORECASE)
_RECORDS = frozenset({".json"})
_PACK_AGAIN = "pack the tar again, without --sparse, with --dereference and --hard-dereference"
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}


@dataclass(frozen=True)
class WebDataset:
    root: str
    tars: tuple[str, ...]  # paths in root, sorted
    others: tuple[str, ...] = ()  # files beside them
    unmatched: tuple[Unmatched, ...] = ()
    caption_column: str = "text"  # of key.json
    stamps: tuple[Stamp, ...] = ()  # of tars that are far away
    sets: tuple[str, ...] = ()  # URLs of what lies beside them there and says what their sets are

    @property
    def part_count(self) -> int:
        return len(self.tars)

    def read(self, path: str) -> bytes:
        """The bytes of a picture. Raises SourceError when there is no such member."""
        name, place = _MARK.split(path, 1)[0], self.file(path)
        members = _members(place, self._status(name))
        member = _MARK.split(path, 1)[-1]
        row = members.find(member)
        if row is None:
            raise SourceError(f"{place} has no member {member!r}: {replaced(place)}")
        return members.read(row)

    def file(self, path: str) -> str:
        return place_in(self.root, _MARK.split(path, 1)[0])

    def _status(self, name: str) -> Stamp:
        if not self.stamps:
            return places.status(place_in(self.root, name))
        at = bisect_left(self.tars, name)
        if self.tars[at : at + 1] != (name,):
            raise SourceError(f"{self.root} has no {name}; it was there when the index ran: run `dvc repro` again")
        return self.stamps[at]

    def parts(self) -> Iterator[Part]:
        """One part for each tar, pictures in the order of their names; tars that are cut off come last, because what
        they lack is guessed from the others. Raises SourceError, CaptionError."""
        largest, cut = 0, []
        for name in self.tars:
            place = place_in(self.root, name)
            status = self._status(name)
            if _members(place, status).is_cut:
                cut.append((name, place, status))
            else:
                part = _part(name, place, status, 0, self.caption_column)
                largest = max(largest, len(part.paths))
                yield part
        for name, place, status in cut:
            yield _part(name, place, status, largest, self.caption_column)
        if self.others or self.unmatched:
            yield beside(self.root, self.others, self.unmatched)


class _Members:
    """Where the files of a tar lie. Arrays, not a dict, because a data set can have thousands of tars."""

    def __init__(self, place: str, found: tar.Contents):
        self.place = place
        self.kept = found.kept
        self.damages, self.joined, self.ended, self.behind = found.damages, found.joined, found.ended, found.behind
        files = [member for member in found.members if member.odd is None]
        last = {member.name.encode(): member for member in files}  # of two of one name the last counts, as for tar
        self.names = np.array(sorted(last), np.bytes_)
        self.extents = np.array([(last[name].data, last[name].size) for name in sorted(last)], np.int64).reshape(-1, 2)
        self.odd = {member.name: member.odd for member in found.members if member.odd and member.odd != "a folder"}
        self.replaced = sorted({member.name for member in files if last[member.name.encode()] is not member})

    @property
    def is_cut(self) -> bool:
        """Whether nothing in the file says how much it lacks."""
        return any(damage.cut for damage in self.damages) or bool(self.damages) and not len(self.names)

    def find(self, name: str) -> int | None:
        wanted = name.encode()
        row = int(np.searchsorted(self.names, wanted))
        return row if row < len(self.names) and self.names[row] == wanted else None

    def read(self, row: int) -> bytes:
        offset, size = map(int, self.extents[row])
        return self.kept[offset] if offset in self.kept else places.read(self.place, size, offset)


@lru_cache(maxsize=512)
def _members(place: str, status: Stamp) -> _Members:
    """The index of a tar in this state. Raises SourceError."""
    found = places.contents(place, status)
    if not found.members and found.damages:
        first = places.read(place, min(8, found.size), 0)
        for magic, form in _PACKED.items():
            if first.startswith(magic):
                raise SourceError(f"{place} is compressed ({form}); unpack it to a .tar, which is read in place")
    for member in found.members:
        if shown(member.name) != member.name:
            raise SourceError(
                f"{place}: the name of the member {member.name!r} is not UTF-8; write the tar again with other names"
            )
    return _Members(place, found)


def _part(name: str, place: str, status: Stamp, largest: int, caption_column: str) -> Part:
    members = _members(place, status)
    plain = {member.decode() for member in members.names}
    odd = {member: what for member, what in members.odd.items() if member not in plain}
    samples, of_picture, alone = _with_masks(f"{name}!", [member.decode() for member in members.names], list(odd))
    pictures = [row for rows in samples.pictures.values() for row in rows]
    pictures.sort()
    position = {row: number for number, row in enumerate(pictures)}
    partner = match(samples.texts, samples.pictures)
    owners = {key: samples.pictures[partner[key]] for key in partner}
    names = {posixpath.normpath(members.names[row].decode()): row for row in pictures}
    for key, picture in match(samples.texts.keys() - owners.keys(), names).items():  # a.png.txt beside a.png
        owners[key] = [names[picture]]
    near = match(samples.texts.keys() - owners.keys(), samples.unread)
    found, unmatched, lost = [], samples.unmatched, []
    unmatched += [Unmatched(f"{name}!{mask}", "mask", masks.NO_PARTNER) for mask in alone]
    spoilt = {position[row]: masks.several(several) for row, several in of_picture.items() if len(several) > 1}
    spoilt |= {
        position[row]: f"mask not read: {name}!{mask}: no plain file: {odd[mask]}; {_PACK_AGAIN}"
        for row, several in of_picture.items()
        for mask in several
        if mask in odd
    }
    times: dict[int, float] = {}
    focus: dict[int, Focus] = {}
    empty: dict[str, list[int]] = {}  # JSON without a caption -> the pictures of its sample
    for key, rows in samples.texts.items():
        for row in rows:
            member = members.names[row].decode()
            if key in owners:
                own = [position[picture] for picture in owners[key]]
                try:
                    if extension(member) in _RECORDS:
                        pairs, also = captions.record(members.read(row), f"{name}!{member}", caption_column)
                        times |= {} if also.times is None else dict.fromkeys(own, also.times)
                        focus |= {} if also.focus is None else dict.fromkeys(own, also.focus)
                    else:
                        pairs = captions.whole(members.read(row), f"{name}!{member}")
                except captions.CaptionError as error:
                    unmatched.append(Unmatched(f"{name}!{member}", "caption", f"not read: {error}"))
                    spoilt |= dict.fromkeys(own, unread_caption(error))
                    continue
                found += [(picture, *pair, "") for picture in own for pair in pairs]
                if not pairs and extension(member) in _RECORDS:
                    empty[f"{name}!{member}"] = own
            elif key in near:
                unmatched.append(Unmatched(f"{name}!{member}", "caption", "its picture is not read"))
            else:
                unmatched.append(Unmatched(f"{name}!{member}", "caption", "no picture of this name"))
    captioned = {row for row, *_ in found}
    for path, own in empty.items():
        if not captioned.intersection(own):  # else the text beside it is the caption
            unmatched.append(Unmatched(path, "caption", "its JSON has no text or caption, or an empty one"))
    twins = match(samples.unread, samples.pictures)
    for key, names in samples.unread.items():
        for member in names:
            if key in twins:
                unmatched.append(Unmatched(member, "picture", "not read, and another of this name is"))
            else:
                lost.append(Lost(member, not_read(member)))
    are_masks = {*alone, *(mask for several in of_picture.values() for mask in several)}
    for member, what in odd.items():
        if extension(member) in PICTURES and member not in are_masks:
            lost.append(Lost(f"{name}!{member}", f"no plain file: {what}; {_PACK_AGAIN}"))
        elif extension(member) in TEXTS | _RECORDS:
            unmatched.append(Unmatched(f"{name}!{member}", "caption", f"no plain file: {what}; {_PACK_AGAIN}"))
    for member in members.replaced:
        unmatched.append(Unmatched(f"{name}!{member}", "file", "a later member of the same name stands in for it"))
    if members.joined:
        begins = ", ".join(map(str, members.joined))
        unmatched.append(Unmatched(name, "file", f"several tars put together: another begins at byte {begins}"))
    if members.behind:
        reason = f"bytes behind its end mark: {members.behind}, too few to be a member, or to tell that one was cut off"
        unmatched.append(Unmatched(name, "file", reason))
    if not status[0]:
        lost.append(Lost(name, "damaged: 0 bytes, so what it held is lost; get the file again"))
    elif not members.ended and not members.damages:
        unmatched.append(
            Unmatched(name, "file", "no end mark: the program that wrote it left that out, or it is cut off")
        )
    lost += _damages(name, members, members.extents[pictures, 0], status[0], largest)
    stamps = np.tile(np.array(status, np.int64), (len(pictures), 1))
    paths = [f"{name}!{members.names[row].decode()}" for row in pictures]
    mine = {position[row]: (f"{name}!{own[0]}", status) for row, own in of_picture.items()}
    whole = places.absolute(place)
    return make_part(whole, paths, stamps, found, samples.others, lost, unmatched, spoilt, times, mine, focus)


def _with_masks(prefix: str, names: list[str], odd: list[str]) -> tuple["_Samples", dict[int, list[str]], list[str]]:
    """The samples; row of a picture -> its masks' names; and masks whose picture is not there. What has a caption of
    its own is a picture. `odd`: the names of members that are no plain files."""
    plain = {posixpath.normpath(name): name for name in (*odd, *names) if not posixpath.basename(name).startswith(".")}
    named = [normal for normal in plain if mask_stem(normal)]
    if not named:
        return _Samples(prefix, names), {}, []
    samples = _Samples(prefix, names, {plain[normal] for normal in named})
    stems = {key: [posixpath.normpath(names[row]) for row in rows] for key, rows in samples.pictures.items()}
    found, alone = masks.beside(stems, named)
    captioned = {_at_last_dot(name) for name in names if extension(name) in TEXTS | _RECORDS}
    alone = [normal for normal in alone if normal not in captioned and _at_last_dot(normal) not in captioned]
    of_picture = {picture: [plain[mask] for mask in several] for picture, several in found.items()}
    is_mask = {plain[mask] for mask in alone} | {mask for several in of_picture.values() for mask in several}
    rows = {posixpath.normpath(name): row for row, name in enumerate(names)}
    by_row = {rows[picture]: several for picture, several in of_picture.items()}
    return _Samples(prefix, names, is_mask), by_row, [plain[mask] for mask in alone]


class _Samples:
    """The members of a tar by the sample that they belong to; its key is the name without the extension.

    WebDataset's extension begins at the first dot: 000.seg.png is a further column of sample 000. Where nothing else
    belongs to such a sample, or a caption has the same name (photo 1.5.jpg, photo 1.5.txt), it begins at the last."""

    def __init__(self, prefix: str, names: list[str], left_out: Collection[str] = ()):
        self.pictures: dict[str, list[int]] = defaultdict(list)  # key → indices into names, as in texts
        self.texts: dict[str, list[int]] = defaultdict(list)
        self.unread: dict[str, list[str]] = defaultdict(list)
        self.unmatched: list[Unmatched] = []
        self.others: list[str] = []
        names = [
            (row, name)
            for row, name in enumerate(names)
            if not posixpath.basename(name).startswith(".") and name not in left_out
        ]
        split = [(row, name, *_at_first_dot(name)) for row, name in names]
        samples = {key for _, _, key, extension in split if _is_known(extension)}
        captioned = {
            _at_last_dot(name) for _, name, _, last in split if not _is_known(last) and extension(name) in TEXTS
        }
        for row, name, key, last in split:
            last_key = _at_last_dot(name)
            if not _is_known(last) and _is_known(extension(name)) and (key not in samples or last_key in captioned):
                key, last = last_key, extension(name)
            if last in PICTURES:
                self.pictures[key].append(row)
            elif last in TEXTS | _RECORDS:
                self.texts[key].append(row)
            elif not_read(name):
                self.unread[key].append(prefix + name)
            elif extension(name) in PICTURES | TEXTS:
                what = f"its extension is {last} (from the first dot on)"
                rule = f"WebDataset's rule: {what}, and sample {posixpath.basename(key)} has other members"
                self.unmatched.append(Unmatched(prefix + name, "file", rule))
            else:
                self.others.append(prefix + name)


def _at_first_dot(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(posixpath.normpath(name))
    stem, dot, last = base.partition(".")
    return posixpath.join(folder, stem), (dot + last).lower()


def _at_last_dot(name: str) -> str:
    return posixpath.splitext(posixpath.normpath(name))[0]


def _is_known(last: str) -> bool:
    return last in PICTURES | TEXTS | _RECORDS or not_read(f"x{last}") is not None


def _damages(name: str, members: _Members, pictures: np.ndarray, size: int, largest: int) -> list[Lost]:
    """What the damages of a tar can have cost. `pictures` are the offsets of those that were found.

    Between members no more can be lost than the bytes hold of the others' mean size, and one more that only begins or
    ends there. Where the file is cut off it is taken to have held as many as the largest whole tar of the data set, or
    twice as many as it does when there is none."""
    whole = size - sum(damage.end - damage.start for damage in members.damages)
    lost = []
    for damage in members.damages:
        before = int((pictures < damage.start).sum())
        if damage.cut or not len(members.names):
            count = max((largest or 2 * len(pictures)) - len(pictures), 1)
        else:
            count = math.ceil((damage.end - damage.start) * len(pictures) / whole) + 1
        place = f"at byte {damage.start}" + (f" to {damage.end}" if damage.end < size else "")
        lost.append(
            Lost(
                name,
                f"damaged: {place}: {damage.reason}; {before} pictures lie before it, up to {count} are lost; get the "
                f"file again",
                count,
            )
        )
    return lost
