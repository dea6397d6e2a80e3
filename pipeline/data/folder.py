"""A folder of pictures as a source: Hugging Face imagefolder form, kohya form, or both at once.

imagefolder: metadata.jsonl or metadata.csv, in the folder or any folder below it, names pictures beside or below
itself. kohya: name.txt or name.caption beside name.png; name.png.txt too. A picture has the captions of all of them
together. Masks stand beside pictures as `masks` says. Names find each other as `match` says."""

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

_Captions = list[tuple[str, str | None]]  # (text, text_2) each


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
        described, often, lost = self._metadata(files, unread)
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
            {rows[path]: times for path, times in often.items()},
            {
                rows[path]: (found_masks[0], stamp(statuses[found_masks[0]]))
                for path, found_masks in of_picture.items()
                if rows[path] not in spoilt
            },
        )

    def _metadata(
        self, files: list[str], unread: dict[str, str]
    ) -> tuple[dict[str, _Captions], dict[str, float], dict[str, str]]:
        """Captions by picture, how often an epoch has it, and why pictures that metadata names cannot be had."""
        described, often, lost = defaultdict(list), {}, {}
        there = [path for path in files if not is_metadata(path)]
        for path in filter(is_metadata, files):
            named, times = defaultdict(list), {}
            for where, file_name, pairs, count in captions.metadata(Path(self.root, path), self.caption_column):
                if not is_plain(file_name):
                    raise SourceError(
                        f"{where}: {file_name!r} is not a path inside the folder; name files relative to it, without .."
                    )
                name = posixpath.normpath(posixpath.join(posixpath.dirname(path), file_name))
                named[name] += pairs
                if count is not None and times.setdefault(name, count) != count:
                    raise SourceError(
                        f"{where}: {file_name!r} {count:g} times an epoch, {times[name]:g} in a row before; wanted one "
                        "number"
                    )
            meant = match(named, there)
            for name, pairs in named.items():
                picture = meant.get(name)
                if picture is None:
                    lost[name] = f"absent: {path} has a caption for it"
                elif picture in unread:
                    lost[picture] = unread[picture]
                else:
                    described[picture] += pairs
                    often |= {picture: times[name]} if name in times else {}
        return described, often, lost

    def _texts(self, path: str, odd: dict[str, str]) -> _Captions:
        if path in odd:
            raise captions.CaptionError(f"{path}: {odd[path]}")
        parse = captions.whole if self.whole_texts else captions.lines
        return parse(self.read(path), path)


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
