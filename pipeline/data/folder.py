"""A folder of pictures as a source: Hugging Face imagefolder form, kohya form, or both at once.

imagefolder: metadata.jsonl or metadata.csv, in the folder or any folder below it, names pictures beside or below
itself. kohya: name.txt or name.caption beside name.png; name.png.txt too. A picture has the captions of all of them
together. name.json beside name.png may say its centre of interest, and nothing else of it is read. Masks stand beside
pictures as `masks` says. Names find each other as `match` says."""

import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import captions, masks
from pipeline.data.kinds import SETS, TEXTS, extension, is_metadata, is_picture, mask_stem, not_read
from pipeline.data.match import match
from pipeline.data.parquet import holds_pictures
from pipeline.data.part import (
    NO_PLAIN_FILE,
    STAMP,
    Lost,
    Part,
    SourceError,
    Unmatched,
    broken_link,
    is_plain,
    linked_folder,
    make_part,
    place_in,
    stamp,
    unread_caption,
)
from pipeline.data.said import FOCUS, Focus, Said

_Captions = list[tuple[str, str | None]]  # (text, text_2) each
_MOST_JSON = 1 << 20  # bytes of a JSON beside a picture that may be about its centre of interest


@dataclass(frozen=True)
class Folder:
    """Pictures are named by their path in the folder."""

    root: str
    whole_texts: bool = False  # name.txt is one caption, not one a line
    caption_column: str = "text"  # of metadata

    @property
    def part_count(self) -> int:
        return 1

    def read(self, path: str) -> bytes:
        """The bytes of a picture. Raises SourceError for a path that leads out of the folder."""
        with open(self.file(path), "rb") as file:
            return file.read()

    def file(self, path: str) -> str:
        return place_in(self.root, path)

    def parts(self) -> Iterator[Part]:
        """The whole folder as one part, pictures sorted by path. Raises SourceError, CaptionError."""
        statuses, linked_folders, odd = _files(self.root)
        files = sorted(statuses)
        unread = {path: reason for path in files if (reason := not_read(path))}
        described, also, lost = self._metadata(files, unread)
        of_picture, alone = _masks(files, odd, described)
        is_mask = {*alone, *(mask for found in of_picture.values() for mask in found)}
        lost |= {
            path: reason
            for path, reason in odd.items()
            if path in lost or path not in is_mask and (is_picture(path) or not_read(path))
        }
        # What metadata.jsonl names is a picture, whatever its name ends in.
        pictures = [path for path in files if (is_picture(path) or path in described) and path not in is_mask]
        rows = {path: row for row, path in enumerate(pictures)}
        no_texts = {*rows, *lost}
        texts = [path for path in sorted([*files, *odd]) if extension(path) in TEXTS and path not in no_texts]
        known = {*rows, *unread, *texts, *is_mask}
        others = [path for path in files if not (path in known or is_metadata(path) or path in SETS)]
        unmatched = [linked_folder(path) for path in linked_folders]
        unmatched += [Unmatched(path, "file", odd[path]) for path in odd.keys() - lost.keys() - set(texts) - is_mask]
        unmatched += [Unmatched(path, "mask", masks.NO_PARTNER) for path in alone]
        found = [(rows[path], *pair, "") for path, pairs in described.items() for pair in pairs]

        rows_of_stem, unread_of_stem = defaultdict(list), {_stem(path): path for path in unread}
        for path, row in rows.items():
            rows_of_stem[_stem(path)].append(row)
        stems = {_stem(path) for path in texts}
        partner = match(stems, rows_of_stem)
        for stem, path in match(stems - partner.keys(), rows).items():  # a.png.txt beside a.png
            partner[stem] = path
            rows_of_stem[path] = [rows[path]]
        near = match(stems - partner.keys(), unread_of_stem)
        spoilt: dict[int, str] = {}
        for path, found_masks in of_picture.items():
            bad = [f"mask not read: {mask}: {odd[mask]}" for mask in found_masks if mask in odd]
            if bad or len(found_masks) > 1:
                spoilt[rows[path]] = bad[0] if bad else masks.several(found_masks)
        for path in texts:
            if stem := partner.get(_stem(path)):
                try:
                    pairs = self._texts(path, odd)
                except captions.CaptionError as error:
                    unmatched.append(Unmatched(path, "caption", f"not read: {error}"))
                    spoilt |= dict.fromkeys(rows_of_stem[stem], unread_caption(error))
                    continue
                found += [(row, *pair, extension(path)) for row in rows_of_stem[stem] for pair in pairs]
            elif stem := near.get(_stem(path)):
                unmatched.append(Unmatched(path, "caption", f"its picture is not read: {unread_of_stem[stem]}"))
            else:
                unmatched.append(Unmatched(path, "caption", "no picture of this name"))

        focus = {rows[path]: one.focus for path, one in also.items() if one.focus is not None}
        beside = {_stem(path): path for path in others if extension(path) == ".json"}
        for stem, there in match(beside, rows_of_stem).items():
            try:
                own = self._focus(beside[stem])
            except captions.CaptionError as error:
                others.remove(beside[stem])
                unmatched.append(Unmatched(beside[stem], "file", f"not read: {error}"))
                spoilt |= dict.fromkeys(rows_of_stem[there], f"focus not read: {error}")
                continue
            if own is not None:
                others.remove(beside[stem])
            for row in rows_of_stem[there] if own is not None else ():
                if focus.setdefault(row, own) != own:
                    spoilt[row] = f"focus not read: {beside[stem]} has another than the table; keep one"
        twins = match(unread_of_stem, rows_of_stem)
        for path, reason in unread.items():
            if _stem(path) in twins and path not in lost:
                unmatched.append(Unmatched(path, "picture", "not read, and another of this name is"))
            else:
                lost.setdefault(path, reason)
        for path in others:
            if extension(path) == ".tar" or extension(path) == ".parquet" and holds_pictures(self.file(path)):
                raise SourceError(
                    f"{self.root} holds pictures and {path}; give a folder with pictures alone or without any"
                )
        stamps = np.array([stamp(statuses[path]) for path in rows], np.int64).reshape(-1, len(STAMP))
        yield make_part(
            os.path.realpath(self.root),
            list(rows),
            stamps,
            found,
            others,
            [Lost(path, reason) for path, reason in lost.items()],
            unmatched,
            spoilt,
            {rows[path]: one.times for path, one in also.items() if one.times is not None},
            {
                rows[path]: (found_masks[0], stamp(statuses[found_masks[0]]))
                for path, found_masks in of_picture.items()
                if rows[path] not in spoilt
            },
            focus,
        )

    def _metadata(
        self, files: list[str], unread: dict[str, str]
    ) -> tuple[dict[str, _Captions], dict[str, Said], dict[str, str]]:
        """Captions by picture, what else metadata says of it, and why pictures that it names cannot be had."""
        described, also, lost = defaultdict(list), {}, {}
        there = [path for path in files if not is_metadata(path)]
        for path in filter(is_metadata, files):
            named, said = defaultdict(list), {}
            for where, file_name, pairs, own in captions.metadata(Path(self.root, path), self.caption_column):
                if not is_plain(file_name):
                    raise SourceError(
                        f"{where}: {file_name!r} is not a path inside the folder; name files relative to it, without .."
                    )
                name = posixpath.normpath(posixpath.join(posixpath.dirname(path), file_name))
                named[name] += pairs
                said[name] = _joined(said.get(name, Said(None, None)), own, f"{where}: {file_name!r}")
            meant = match(named, there)
            for name, pairs in named.items():
                picture = meant.get(name)
                if picture is None:
                    lost[name] = f"absent: {path} has a caption for it"
                elif picture in unread:
                    lost[picture] = unread[picture]
                else:
                    described[picture] += pairs
                    also[picture] = said[name]
        return described, also, lost

    def _focus(self, path: str) -> Focus | None:
        """What a JSON beside a picture says of its centre of interest; None for one that is about other things, or too
        large to be about that alone. Raises CaptionError, also for what is no JSON: it may have said one."""
        if os.path.getsize(self.file(path)) > _MOST_JSON:
            return None
        try:
            value = json.loads(self.read(path))
        except (ValueError, RecursionError) as error:
            raise captions.CaptionError(f"{path}: not JSON: {error}; mend or remove it") from None
        if not isinstance(value, dict):
            return None
        return captions.said({name: value.get(name) for name in FOCUS}, path).focus

    def _texts(self, path: str, odd: dict[str, str]) -> _Captions:
        if path in odd:
            raise captions.CaptionError(f"{path}: {odd[path]}")
        parse = captions.whole if self.whole_texts else captions.lines
        return parse(self.read(path), path)


def _joined(before: Said, own: Said, where: str) -> Said:
    """What two rows of one picture say. Raises SourceError where they differ."""
    if None not in (before.times, own.times) and before.times != own.times:
        raise SourceError(f"{where} {own.times:g} times an epoch, {before.times:g} in a row before; wanted one number")
    if None not in (before.focus, own.focus) and before.focus != own.focus:
        raise SourceError(f"{where} has {own.focus} for its focus, and {before.focus} in a row before; wanted one")
    return Said(*(other if one is None else one for one, other in zip(before, own)))


def _masks(files: list[str], odd: dict[str, str], described: Collection[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Picture -> its masks, and masks whose picture is not there. What has a caption of its own, in metadata or in a
    text, is a picture."""
    named = [path for path in (*files, *odd) if mask_stem(path) and path not in described]
    stems = defaultdict(list)
    for path in files if named else ():
        if (is_picture(path) or path in described) and not (mask_stem(path) and path not in described):
            stems[_stem(path)].append(path)
    found, alone = masks.beside(stems, named)
    captioned = {_stem(path) for path in files if extension(path) in TEXTS} if alone else ()
    return found, [path for path in alone if path not in captioned and _stem(path) not in captioned]


def _stem(path: str) -> str:
    return posixpath.splitext(path)[0]


def _files(root: str) -> tuple[dict[str, os.stat_result], list[str], dict[str, str]]:
    """All files below `root`, as path relative to it with its status; links to folders, which are not followed; and
    why others cannot be read (path -> reason). Hidden ones are left out. Raises SourceError for metadata that cannot
    be read."""
    found, linked_folders, odd, folders = {}, [], {}, [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink() and (reason := broken_link(entry.path)):
                    odd[path] = reason
                elif entry.is_dir():
                    (linked_folders if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    found[path] = entry.stat()
                else:
                    odd[path] = NO_PLAIN_FILE
                if path in odd and is_metadata(path):
                    raise SourceError(f"{os.path.join(root, path)}: {odd[path]}")
    return found, sorted(linked_folders), dict(sorted(odd.items()))
