"""Captions: the forms in which files hold them, and the names by which the cache knows them.

A caption is a pair: the text, and the second encoder's own text or None when it reads the same. Space around a text is
dropped. An empty text is no caption. Lines end with \\n or \\r\\n and with nothing else that Unicode knows."""

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii
from pathlib import Path

from pipeline.data.emphasis import is_weighted, pieces
from pipeline.data.said import Said
from pipeline.data.said import said as said_of
from pipeline.stage import StageError

_LONGEST_FILE = 1 << 20  # bytes; a caption file that is longer is something else
csv.field_size_limit(_LONGEST_FILE)  # Python's own is 131,072


class CaptionError(StageError):
    """A file of captions cannot be read: the message names the file and the line."""


class TableError(CaptionError):
    """No line of a file of metadata can be used."""


def name(text: str, text_2: str | None, emphasis: str = "none") -> bytes:
    """16 bytes that name a caption: blake2b of the JSON list [text, text_2]; with a third item, the `emphasis`
    (params.cache_text.emphasis), where weights of words make another caption of it. Raises StageError where these are
    too large."""
    second = "null" if text_2 is None else encode_basestring_ascii(text_2)
    weighted = emphasis != "none" and (is_weighted(text) or is_weighted(text_2))
    if weighted:
        pieces(text), pieces(text_2 or "")
    third = f", {encode_basestring_ascii(emphasis)}" if weighted else ""
    return hashlib.blake2b(f"[{encode_basestring_ascii(text)}, {second}{third}]".encode(), digest_size=16).digest()


def pairs(text: object, text_2: object, where: str) -> list[tuple[str, str | None]]:
    """The captions of one metadata line. Each value is a string, a list of strings, or None (no caption).

    Two lists of one length go together item by item; one text goes with each of the other's. Raises CaptionError."""
    texts, seconds = _texts(text, "text", where), _texts(text_2, "text_2", where)
    if isinstance(text, list) and isinstance(text_2, list) and len(texts) != len(seconds):
        raise CaptionError(f"{where}: text has {len(texts)} captions and text_2 {len(seconds)}; give as many, or one")
    texts, seconds = texts or [""], seconds or [""]
    count = max(len(texts), len(seconds))
    texts, seconds = (values * count if len(values) == 1 else values for values in (texts, seconds))
    return [(first, second or None) for first, second in zip(texts, seconds) if first or second]


def lines(data: bytes, where: str) -> list[tuple[str, None]]:
    """kohya's form (name.txt beside name.png): each line that is not blank is a caption. Raises CaptionError."""
    return [(line.strip(), None) for line in _decoded(data, where).split("\n") if line.strip()]


def whole(data: bytes, where: str) -> list[tuple[str, None]]:
    """WebDataset's form (key.txt beside key.jpg): the file is one caption. Line ends within it stay; to CLIP's
    tokenizers they are space. Raises CaptionError."""
    text = _decoded(data, where).strip()
    return [(text, None)] if text else []


def record(data: bytes, where: str, column: str = "text") -> tuple[list[tuple[str, str | None]], Said]:
    """WebDataset's form (key.json beside key.jpg): an object with text (or caption, as img2dataset writes) and
    text_2. Returns the captions and what else it says. `column`: the key that stands for text."""
    value = _json(_decoded(data, where), where)
    return pairs(value.get(column, value.get("caption")), value.get("text_2"), where), said(value, where)


def metadata(path: Path, column: str = "text") -> Iterator[tuple[str, str, list[tuple[str, str | None]], Said]]:
    """Hugging Face's form, metadata.jsonl or metadata.csv: yields (where, file_name, captions, what else it says),
    `where` being file:line. `column`: the one of the captions.

    Raises CaptionError for a line that is broken, has no file_name or no text."""
    try:
        yield from _rows(path, column)
    except TableError:
        raise
    except CaptionError as error:
        raise CaptionError(f"{error} (no table is used of which a line is broken: mend or remove that line)") from None


def said(row: dict, where: str) -> Said:
    """What else a row says of its picture. Raises CaptionError."""
    try:
        return said_of(row)
    except ValueError as error:
        raise CaptionError(f"{where}: {error}") from None


def _rows(path: Path, column: str) -> Iterator[tuple[str, str, list[tuple[str, str | None]], Said]]:
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    empty = True
    for where, row in rows:
        empty = False
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise CaptionError(f"{where}: found file_name {file_name!r}, wanted the picture's path in this folder")
        if column not in row:
            raise CaptionError(
                f"{where}: no {column}; found {', '.join(map(str, row))}; data.caption_column says which is the caption"
            )
        yield where, file_name, pairs(row[column], row.get("text_2"), where), said(row, where)
    if empty:  # all pictures would be trained on without their captions
        raise TableError(f"{path}: holds no row; get or write it again, or remove it")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict]]:
    with open(path, "rb") as file:
        is_utf_16 = _is_utf_16(file.read(2))
        file.seek(0)
        # UTF-16 has the byte of \n within other characters too.
        rows = _text(file.read(), str(path)).split("\n") if is_utf_16 else file
        for number, row in enumerate(rows, 1):
            where = f"{path}:{number}"
            text = row if isinstance(row, str) else _text(row, where)
            if text.strip():
                yield where, _json(text, where)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if _is_utf_16(data) else "utf-8-sig")
    except UnicodeDecodeError as error:
        if _is_utf_16(data):
            raise CaptionError(f"{path}: not UTF-16: {error}; write it as UTF-8") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise CaptionError(
            f"{path}:{line}: not UTF-8: {error.reason} at byte {error.start}; write it as UTF-8"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline="\n"), strict=True)
    try:
        columns = reader.fieldnames or []
        if columns and "file_name" not in columns:
            raise TableError(
                f"{path}:1: no column file_name; found the header {','.join(columns)[:200]!r}, wanted file_name and text, "
                "separated by commas"
            )
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                count = len(reader.fieldnames)
                raise CaptionError(
                    f"{where}: this row has not the {count} cells of the header; quote texts with commas"
                )
            yield where, row
    except csv.Error as error:
        raise CaptionError(f"{path}:{reader.reader.line_num}: not CSV: {error}") from None


def _texts(value: object, key: str, where: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    values = ["" if text is None else text for text in values]  # of two lists each item keeps its place
    for text in values:
        if not isinstance(text, str):
            raise CaptionError(f"{where}: found {key} {text!r}, wanted a string or a list of strings")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CaptionError(f"{where}: {key} {text!r} has half a surrogate pair, which is no Unicode text") from None
    return [text.strip() for text in values]


def _json(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CaptionError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CaptionError(
            f'{where}: found JSON of type {type(value).__name__}, wanted an object like {{"file_name": …, "text": …}}'
        )
    return value


def _decoded(data: bytes, where: str) -> str:
    if len(data) > _LONGEST_FILE:
        raise CaptionError(f"{where}: {len(data)} bytes is too long for a caption (above {_LONGEST_FILE})")
    return _text(data, where)


def _text(data: bytes, where: str) -> str:
    is_utf_16 = _is_utf_16(data)
    try:
        return data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{where}: not UTF-{16 if is_utf_16 else 8}: {error}; write it as UTF-8") from None


def _is_utf_16(data: bytes) -> bool:
    """By its byte order mark: "Unicode" of Windows' editors."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
