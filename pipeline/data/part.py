"""What a source of pictures yields: parts, each with the paths of its pictures and their captions."""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from pipeline.stage import StageError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})  # lower case
_NAMED = 5  # of many files, so many are named in a message


class SourceError(StageError):
    """The data set cannot be used as it is: what was found, where, what to do."""


@dataclass(frozen=True)
class Part:
    """A stretch of a source that is indexed in one go: a folder, a tar, a Parquet file.

    paths (n,) string: distinct names for Source.read. stamps (n, 3) int64: size, mtime_ns, ctime_ns of the file that
    holds the picture; as long as they stay, so does the picture. caption_rows (m,) int64: the picture that a caption
    belongs to, as an index into paths; texts, texts_2 (m,) string, the latter with nulls."""

    place: str  # absolute path of the folder or file
    paths: pa.StringArray
    stamps: np.ndarray
    caption_rows: np.ndarray
    texts: pa.StringArray
    texts_2: pa.StringArray
    others: list[str] = field(default_factory=list)  # files that are neither pictures nor captions


def make_part(
    place: str, paths: list[str], stamps: np.ndarray, captions: list[tuple[int, str, str | None]], others: list[str]
) -> Part:
    """A Part of plain lists; `captions` holds (index into paths, text, text_2). Raises SourceError for a name that is
    no text."""
    try:
        names = pa.array(paths, pa.string())
    except UnicodeEncodeError:
        bad = next(path for path in paths if not _is_text(path))
        raise SourceError(f"{place}: the file name {os.fsencode(bad)!r} is not UTF-8; rename the file") from None
    rows, texts, texts_2 = zip(*captions) if captions else ((), (), ())
    return Part(
        place,
        names,
        stamps,
        np.array(rows, np.int64),
        pa.array(texts, pa.string()),
        pa.array(texts_2, pa.string()),
        others,
    )


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file does. The ctime shows a file that was replaced together with its old times."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def inside(root: str, path: str) -> str:
    """The real path of `path`, given relative to `root`. Raises SourceError when that lies outside, by `..` or by a
    link."""
    if not is_plain(path):
        raise SourceError(f"{path!r} is not a path inside {root}; name files relative to their folder, without ..")
    real_root = os.path.realpath(root)
    real = os.path.realpath(os.path.join(real_root, path))
    if not real.startswith(real_root.rstrip("/") + "/"):
        raise SourceError(
            f"{os.path.join(root, path)} is a link to {real}, outside its folder; put the file itself there "
            f"(DVC does with cache.type reflink, hardlink or copy)"
        )
    return real


def is_plain(path: str) -> bool:
    """Whether a path from a data file is relative and never goes up."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts and "\0" not in path


def is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in PICTURES


def some(names: list[str]) -> str:
    """A few of many names for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
