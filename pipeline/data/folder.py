"""A folder of pictures as a source: Hugging Face imagefolder form, kohya form, or both at once.

imagefolder: metadata.jsonl or metadata.csv, in the folder or any folder below it, names pictures beside or below
itself. kohya: name.txt or name.caption beside name.png. A picture has the captions of all of them together."""

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import captions
from pipeline.data.part import Part, SourceError, inside, is_picture, is_plain, make_part, some, stamp

METADATA = ("metadata.jsonl", "metadata.csv")
CAPTIONS = (".caption", ".txt")


@dataclass(frozen=True)
class Folder:
    """Pictures are named by their path in the folder."""

    root: str

    def read(self, path: str) -> bytes:
        """The bytes of a picture. Raises SourceError for a path that leads out of the folder."""
        with open(inside(self.root, path), "rb") as file:
            return file.read()

    def parts(self) -> Iterator[Part]:
        """The whole folder as one part, pictures sorted by path. Raises SourceError, CaptionError."""
        files = sorted(_files(self.root))
        pictures = {path: row for row, path in enumerate(path for path, _ in files if is_picture(path))}
        stamps = np.array([stamp(status) for path, status in files if path in pictures], np.int64).reshape(-1, 3)
        rows_of_stem = defaultdict(list)
        for path, row in pictures.items():
            rows_of_stem[posixpath.splitext(path)[0]].append(row)

        found, others = [], []
        for path, _ in files:
            stem, extension = posixpath.splitext(path)
            if path in pictures:
                continue
            if posixpath.basename(path) in METADATA:
                found += self._metadata(path, pictures)
            elif extension in CAPTIONS and stem in rows_of_stem:
                texts = captions.lines(self.read(path), os.path.join(self.root, path))
                found += [(row, *texts_of_line) for row in rows_of_stem[stem] for texts_of_line in texts]
            elif extension in (".tar", ".parquet"):
                raise SourceError(
                    f"{self.root} holds pictures and {path}; give a folder with pictures alone or without any"
                )
            else:
                others.append(path)
        yield make_part(os.path.realpath(self.root), list(pictures), stamps, found, others)

    def _metadata(self, path: str, pictures: dict[str, int]) -> list[tuple[int, str, str | None]]:
        found, absent = [], []
        for where, file_name, texts in captions.metadata(Path(self.root, path)):
            if not is_plain(file_name):
                raise SourceError(
                    f"{where}: {file_name!r} is not a path inside the folder; name files relative to it, without .."
                )
            row = pictures.get(posixpath.normpath(posixpath.join(posixpath.dirname(path), file_name)))
            if row is None:
                absent.append(file_name)
            else:
                found += [(row, *pair) for pair in texts]
        if absent:
            raise SourceError(
                f"{os.path.join(self.root, path)} has captions for {len(absent)} pictures that are not in the folder: "
                f"{some(absent)}; add the pictures or remove their lines"
            )
        return found


def _files(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files below `root`, as path relative to it and status. Hidden ones are left out, links to folders not
    followed."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    inside(root, path)
                    if entry.is_dir():
                        continue
                if entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    yield path, entry.stat()
                else:
                    raise SourceError(
                        f"{os.path.join(root, path)} is neither a file nor a folder (a broken link?); remove it"
                    )
