"""A .urls file: URLs of far data or patterns of them, one a line. `data refresh` writes behind each in which state its
files are, and so DVC, which watches this file, notices that they have changed."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from pipeline import store
from pipeline.data import far
from pipeline.data.part import SourceError, is_far

END = ".urls"
_LINE = re.compile(r"\s*(.*?)(?:\s+# (files: [\d,]+, bytes: [\d,]+, state: [0-9a-f]{16}))?\s*")


class Line(NamedTuple):
    url: str  # or a pattern; "" where there is none
    state: str | None  # of its files when `data refresh` last looked; None: it has not


class Change(NamedTuple):
    url: str
    old: str | None
    new: str


def read(path: str) -> list[Line]:
    """Raises SourceError."""
    return [line for line in map(_line, _lines(path)) if line.url]


def listing(path: str) -> list[far.Far]:
    """All files behind it. Raises SourceError, also where they are in another state than it says."""
    found: list[far.Far] = []
    for line in read(path):
        files = far.listing(line.url)
        if line.state not in (None, now := _state(files)):
            raise SourceError(
                f"{line.url} has changed since {path} was refreshed ({line.state}; now {now}); run `python -m pipeline "
                "data refresh`, so that DVC knows"
            )
        found += files.values()
    return found


def refresh(path: str) -> list[Change]:
    """Ask the servers and write down what has changed. Where nothing has, the file stays as it is. Raises SourceError."""
    lines, changes = _lines(path), []
    for number, line in enumerate(map(_line, lines)):
        if line.url and (now := _state(far.listing(line.url))) != line.state:
            changes.append(Change(line.url, line.state, now))
            lines[number] = f"{line.url} # {now}"
    if changes:
        with store.atomic(path) as written:
            written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return changes


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"data.images is {path!r}, which cannot be read as a list of URLs: {error}") from None
    urls = [line.url for line in map(_line, lines) if line.url]
    if not urls or not all(map(is_far, urls)):
        raise SourceError(
            f"{path}: wanted a URL of a .tar or .parquet, or a pattern of them, or of their sets.yaml, a line"
        )
    return lines


def _line(text: str) -> Line:
    return Line("", None) if text.lstrip().startswith("#") else Line(*_LINE.fullmatch(text).groups())


def _state(files: dict[str, far.Far]) -> str:
    """Of names, sizes and ETags; the same whatever their order."""
    found = sorted((file.url, *file.stamp) for file in files.values())
    digest = hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest()
    return f"files: {len(files):,}, bytes: {sum(file.stamp[0] for file in files.values()):,}, state: {digest}"
