"""What a source of pictures yields: parts, each with the paths of its pictures and their captions."""

import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.data.said import Focus
from pipeline.stage import StageError

STAMP = ("size", "mtime_ns", "ctime_ns", "inode")
NO_PLAIN_FILE = "no plain file: a pipe, a socket or a device; remove it"
_NAMED = 5  # of many files, so many are named in a message


class SourceError(StageError):
    """The data set cannot be used as it is: what was found, where, what to do."""


class Lost(NamedTuple):
    """Pictures that the data set has or names and that cannot be opened: index counts them as rejected ones."""

    path: str
    reason: str  # `kind: detail`, as of images.Rejected
    count: int = 1


class Unmatched(NamedTuple):
    """A file or member that is left alone though it looks like a part of the data set."""

    path: str
    what: str  # picture | caption | mask | folder | file
    reason: str  # `kind` or `kind: detail`


@dataclass(frozen=True)
class Part:
    """A stretch of a source that is indexed in one go: a folder, a tar, a Parquet file.

    paths (n,) string: distinct names for Source.read. stamps (n, 4) int64: what `stamp` says of the file that holds the
    picture; as long as it stays, so does the picture. caption_rows (m,) int64: the picture that a caption belongs to,
    as an index into paths; texts, texts_2 (m,) string, the latter with nulls. focus (n, 5) float64: the centre of interest as
    said.Focus has it, NaN for none. masks (n,) string: further names for
    Source.read, null where there is none; mask_stamps (n, 4) int64 of their files, of which those without a mask mean
    nothing."""

    place: str  # absolute path of the folder or file, and which column; what is known of its pictures goes by it
    paths: pa.StringArray
    stamps: np.ndarray
    caption_rows: np.ndarray
    texts: pa.StringArray
    texts_2: pa.StringArray
    origins: pa.StringArray
    times: np.ndarray
    focus: np.ndarray
    masks: pa.StringArray
    mask_stamps: np.ndarray
    others: list[str] = field(default_factory=list)  # files that are neither pictures nor captions
    lost: list[Lost] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)


def make_part(
    place: str,
    paths: list[str],
    stamps: np.ndarray,
    captions: list[tuple[int, str, str | None, str]],
    others: list[str],
    lost: list[Lost] = (),
    unmatched: list[Unmatched] = (),
    spoilt: dict[int, str] | None = None,
    times: dict[int, float] | None = None,
    masks: dict[int, tuple[str, tuple[int, ...]]] | None = None,
    focus: dict[int, Focus] | None = None,
) -> Part:
    """A Part of plain lists; `captions` holds (index into paths, text, text_2, origin), `times` those that are not 1 by
    index into paths, `focus` those that have one and `masks` the (path, stamp) of each mask alike. Pictures that are `spoilt` (index into paths ->
    reason) become lost ones, and so do those whose name, or their mask's, is no text."""
    if spoilt:
        lost = [*lost, *(Lost(shown(paths[row]), reason) for row, reason in spoilt.items())]
        kept = [row for row in range(len(paths)) if row not in spoilt]
        new = {row: number for number, row in enumerate(kept)}
        paths, stamps = [paths[row] for row in kept], stamps[kept]
        captions = [(new[row], *pair) for row, *pair in captions if row in new]
        times = {new[row]: value for row, value in (times or {}).items() if row in new}
        masks = {new[row]: value for row, value in (masks or {}).items() if row in new}
        focus = {new[row]: value for row, value in (focus or {}).items() if row in new}
    masks = masks or {}
    try:
        names = pa.array(paths, pa.string())
        of_masks = pa.array([masks[row][0] if row in masks else None for row in range(len(paths))], pa.string())
    except UnicodeEncodeError:
        reason = "not UTF-8; rename the file"
        bad = {
            row: f"bad name: that of its mask is {reason}" for row, (path, _) in masks.items() if shown(path) != path
        }
        bad |= {row: f"bad name: {reason}" for row, path in enumerate(paths) if shown(path) != path}
        return make_part(place, paths, stamps, captions, others, lost, unmatched, bad, times, masks, focus)
    rows, texts, texts_2, origins = zip(*captions) if captions else ((), (), (), ())
    often = np.ones(len(paths))
    for row, value in (times or {}).items():
        often[row] = value
    centres = np.full((len(paths), len(Focus._fields)), np.nan)
    for row, one in (focus or {}).items():
        centres[row] = one
    mask_stamps = np.zeros((len(paths), len(STAMP)), np.int64)
    for row, (_, of_file) in masks.items():
        mask_stamps[row] = of_file
    return Part(
        place,
        names,
        stamps,
        np.array(rows, np.int64),
        pa.array(texts, pa.string()),
        pa.array(texts_2, pa.string()),
        pa.array(origins, pa.string()),
        often,
        centres,
        of_masks,
        mask_stamps,
        [shown(name) for name in others],
        [Lost(shown(path), shown(reason), count) for path, reason, count in lost],
        [Unmatched(shown(path), what, shown(reason)) for path, what, reason in unmatched],
    )


def choose_pictures(part: Part, kept: np.ndarray) -> Part:
    """The part with those of its pictures that are `kept`, (n,) bool."""
    new = np.cumsum(kept) - 1
    mine = kept[part.caption_rows]
    mask = pa.array(mine)
    return replace(
        part,
        paths=part.paths.filter(pa.array(kept)),
        stamps=part.stamps[kept],
        caption_rows=new[part.caption_rows[mine]],
        texts=part.texts.filter(mask),
        texts_2=part.texts_2.filter(mask),
        origins=part.origins.filter(mask),
        times=part.times[kept],
        focus=part.focus[kept],
        masks=part.masks.filter(pa.array(kept)),
        mask_stamps=part.mask_stamps[kept],
    )


def without_captions(part: Part) -> Part:
    return replace(
        part,
        caption_rows=part.caption_rows[:0],
        texts=part.texts.slice(0, 0),
        texts_2=part.texts_2.slice(0, 0),
        origins=part.origins.slice(0, 0),
    )


def broken_link(path: str) -> str | None:
    """What is wrong with a link that leads to nothing; None for all else."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return f"broken link: to {os.readlink(path)}, where nothing is; mend it or remove it"


def unread_caption(reason: object) -> str:
    """Why a picture is lost whose caption cannot be read: it would be trained on without one."""
    return f"caption not read: {reason}"


def linked_folder(path: str) -> Unmatched:
    return Unmatched(path, "folder", "a link to a folder, which is not followed: DVC sees no change behind it")


def beside(root: str, others: tuple[str, ...], unmatched: tuple[Unmatched, ...]) -> Part:
    """A part without pictures, for what lies beside the files of a source."""
    return make_part(root, [], np.empty((0, len(STAMP)), np.int64), [], list(others), unmatched=list(unmatched))


def stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    """What changes when a file does, as STAMP names it. The ctime shows a file that was replaced together with its old
    times, the inode one that came with another folder or as a link's other target."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def is_far(path: str) -> bool:
    """Whether it is a URL."""
    return "://" in path


def is_plain(path: str) -> bool:
    """Whether a path from a data file is relative and never goes up."""
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts and "\0" not in path


def place_in(root: str, path: str) -> str:
    """The file of a source with this path in its root. A link there is the user's word and may lead anywhere; a name
    may not. Raises SourceError."""
    if not is_plain(path):
        raise SourceError(f"{path!r} is not a path inside {root}; name files relative to their folder, without ..")
    return os.path.join(root, path)


def replaced(file: str) -> str:
    """What to do about a file that is not what the index read. DVC knows files by size, mtime and inode, so `dvc repro`
    alone may see no change."""
    if is_far(file):
        return "it was changed since the index read it; run `dvc repro` again"
    folder = shlex.quote(os.path.dirname(file) or ".")
    return (
        f"it was changed or replaced since, perhaps with its size and time kept, which DVC does not see: `touch "
        f"{shlex.quote(file)}`, then `dvc repro` (if there are many: `find -L {folder} -type f -exec touch {{}} +`)"
    )


def some(names: list[str]) -> str:
    """A few of many names for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more


def shown(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 as \\udc.. escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
