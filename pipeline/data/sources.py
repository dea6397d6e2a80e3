"""Where pictures and captions come from: a folder, WebDataset tars or Parquet files, told apart by what is there."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.data import far, urls
from pipeline.data.folder import Folder
from pipeline.data.kinds import SETS, is_metadata, is_picture, not_read
from pipeline.data.parquet import ParquetFiles, holds_pictures
from pipeline.data.part import (
    NO_PLAIN_FILE,
    Part,
    SourceError,
    Unmatched,
    broken_link,
    is_far,
    is_plain,
    linked_folder,
    shown,
    some,
)
from pipeline.data.webdataset import WebDataset

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz")


class Source(Protocol):
    """A data set. It can be pickled, opens files when it needs them, and is shared by threads."""

    root: str
    part_count: int  # of the parts that hold pictures

    def read(self, path: str) -> bytes:
        """The bytes of the picture with this path in images.parquet. Raises SourceError."""

    def file(self, path: str) -> str:
        """The file that holds that picture. Raises SourceError."""

    def parts(self) -> Iterator[Part]:
        """All pictures and captions. Raises SourceError, CaptionError."""


def open_source(
    path: str, caption_lines: str = "several", image_column: str = "image", caption_column: str = "text"
) -> Source:
    """The data set at `path` (params.data.images).

    One of these far away, by an fsspec URL or a pattern of URLs, or a .urls file with several of them, one a line: tars
    or Parquet, read by range. A .tar, or a folder of .tar and no pictures: WebDataset. A .parquet, or a folder of .parquet and no pictures:
    Parquet. Any other folder: imagefolder or kohya form. Parquet files without pictures beside tars, as img2dataset
    writes them, are left alone. `caption_lines` (params.index.caption_lines) says what the lines of name.txt in a
    folder are; it does not matter for reading pictures, nor does `caption_column`, the column of metadata, JSON and
    Parquet that holds captions. `image_column` is the one of Parquet that holds pictures. Raises SourceError."""
    if is_far(path) or path.lower().endswith(urls.END):
        return _open_far(path, image_column, caption_column)
    if not os.path.exists(path):
        raise SourceError(f"data.images is {path!r}, and {broken_link(path) or 'there is no such folder or file'}")
    if os.path.isfile(path):
        root, name = os.path.split(path)
        if name.lower().endswith(".tar"):
            return WebDataset(root or ".", (name,), caption_column=caption_column)
        if name.lower().endswith(".parquet"):
            return ParquetFiles(root or ".", (name,), image_column=image_column, caption_column=caption_column)
        raise SourceError(f"data.images is the file {path!r}; wanted a folder, a .tar (uncompressed) or a .parquet")
    tars, parquets, compressed, others, links, as_folder = [], [], [], [], [], False
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [_relative(path, folder, name) for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in names:
            if name.startswith("."):
                continue
            if is_picture(name):
                return Folder(path, caption_lines == "one", caption_column)
            as_folder = as_folder or is_metadata(name) or not_read(name) is not None
            ends = ((".tar", tars), (".parquet", parquets), (_COMPRESSED, compressed), ("", others))
            relative = _relative(path, folder, name)
            if relative not in SETS:
                next(found for end, found in ends if name.lower().endswith(end)).append(relative)
    if compressed:
        raise SourceError(
            f"{path} holds compressed tars ({some(sorted(compressed))}); unpack them to .tar, which is read in place"
        )
    for found in (tars, parquets, others, links):
        found.sort()
    for name in [*tars, *parquets]:
        if not os.path.isfile(place := os.path.join(path, name)):
            raise SourceError(f"{place}: {broken_link(place) or NO_PLAIN_FILE}")
    unmatched = tuple(map(linked_folder, links))
    if tars:
        with_pictures = [name for name in parquets if holds_pictures(os.path.join(path, name), image_column)]
        if with_pictures:
            raise SourceError(
                f"{path} holds tars ({tars[0]}) and Parquet files ({with_pictures[0]}); give a folder with one kind"
            )
        reason = "a table without pictures beside tars; the tars are read"
        tables = tuple(Unmatched(name, "file", reason) for name in parquets)
        return WebDataset(path, tuple(tars), tuple(others), unmatched + tables, caption_column)
    if parquets:
        return ParquetFiles(path, tuple(parquets), tuple(others), unmatched, image_column, caption_column)
    if as_folder:
        return Folder(path, caption_lines == "one", caption_column)
    hint = f" (links to folders are not followed: {some(links)})" if links else ""
    raise SourceError(f"{path} holds no pictures, no .tar and no .parquet{hint}{_instead(others)}")


def _open_far(path: str, image_column: str, caption_column: str) -> Source:
    found: dict[str, far.Far] = {}
    sets = []
    for url in [path] if is_far(path) else [line.url for line in urls.read(path)]:
        for name, file in far.listing(url).items():
            if file.url in found:
                raise SourceError(f"{path} names {file.url} twice")
            if name in SETS or is_far(name) and name.rpartition("/")[2] in SETS:
                sets.append(file.url)
            else:
                found[name if is_far(path) else file.url] = file
    root = "" if any(map(is_far, found)) or not is_far(path) else path.rstrip("/")
    others, unmatched = [], []
    kinds: dict[str, dict[str, far.Far]] = {".tar": {}, ".parquet": {}}
    for name in sorted(found):
        base = name.rpartition("/")[2].lower()
        if base.startswith(".") or not is_plain(name) or shown(name) != name or not name.isprintable():
            continue
        if is_picture(base) or is_metadata(base):
            raise SourceError(
                f"{path} holds pictures or their table ({shown(name)}); of far data tars and Parquet are read: pack them"
            )
        if base.endswith(_COMPRESSED):
            raise SourceError(
                f"{path} holds compressed tars ({shown(name)}); unpack them to .tar, which is read in place"
            )
        end = next((end for end in kinds if base.endswith(end)), None)
        if end is not None:
            kinds[end][name] = found[name]
        else:
            others.append(name)
    tars, tables = kinds.values()
    if not tars and not tables:
        found_there = f"; found {some(others)}" if others else ", or nothing at all"
        raise SourceError(f"{path} holds no .tar and no .parquet{found_there}")
    if tars:
        for name, file in itertools.islice(tables.items(), 1):  # img2dataset writes one beside each tar
            if holds_pictures(file.url, image_column, file.stamp):
                raise SourceError(f"{path} holds tars and Parquet files ({shown(name)}); give a folder with one kind")
        reason = "a table without pictures beside tars; the tars are read"
        unmatched += [Unmatched(name, "file", reason) for name in tables]
    beside = tuple(others), tuple(unmatched)
    chosen = tars or tables
    stamps = tuple(file.stamp for file in chosen.values())
    if tars:
        return WebDataset(root, tuple(chosen), *beside, caption_column, stamps, tuple(sets))
    return ParquetFiles(root, tuple(chosen), *beside, image_column, caption_column, stamps, tuple(sets))


def _instead(others: list[str]) -> str:
    """What to do with the files that a folder has in place of what is read."""
    ends = {Path(name).suffix.lower() for name in others}
    if ".arrow" in ends:
        return "; it is a data set that `datasets` saved to disk: write it as Parquet (to_parquet) or as pictures"
    if packed := ends & {".zip", ".7z", ".rar"}:
        return f"; unpack the {' and '.join(sorted(packed))}"
    return f"; found {some(others)}" if others else ""


def _relative(root: str, folder: str, name: str) -> str:
    return Path(folder, name).relative_to(root).as_posix()
