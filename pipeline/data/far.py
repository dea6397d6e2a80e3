"""Data that lie far away, behind an fsspec URL: what is there, and bytes of it by range.

Nothing is copied to this disk. What came wrong or too slowly is asked for again; what does not come at all is an error
that names the URL. Keys and tokens come from where each library looks for them (such as AWS_PROFILE or
HF_TOKEN), and never from a URL."""

import hashlib
import importlib
import io
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import fsspec
from fsspec.asyn import sync

from pipeline.data.kinds import SETS
from pipeline.data.part import SourceError, shown

# Scheme -> the package that reads it. No other is taken: some of fsspec's lead to files of this computer.
SCHEMES = {
    "s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "oss": "ossfs", "hf": "huggingface_hub",
    "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
ATTEMPTS = 5  # at one request
WAITS = 1.0  # seconds before the second, twice as long before each further one
SECONDS, PER_SECOND = 30.0, 50_000  # that a request may take, and bytes that it may take a second longer for
_LISTED_AT_ONCE = 16
_MOST = 100_000  # URLs that a pattern may stand for
_FOR_EVER = 1 << 62  # in the place of a change time: never settled
_VERSIONS = ("ETag", "etag", "Content-MD5", "content_md5", "md5Hash", "generation", "blob_id", "Digest")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated")

Stamp = tuple[int, int, int, int]


class Far(NamedTuple):
    url: str
    stamp: Stamp  # its size, and what stands for its content


def urls(pattern: str) -> list[str]:
    """The URLs that a pattern stands for: {000..099} counts, {a,b} are alternatives. Raises SourceError."""
    scheme, _, rest = pattern.partition("://")
    host, slash, _ = rest.partition("/")
    if scheme not in SCHEMES or "::" in pattern:
        raise SourceError(f"{shown(pattern)}: {shown(scheme)}:// is not read; wanted {'://, '.join(SCHEMES)}://")
    if "@" in host or "?" in rest or "#" in rest:
        raise SourceError(
            f"{scheme}://{shown(host.rpartition('@')[2])}…: a URL with a user, a ? or a # is not taken, as it can hold "
            "a key, and what is in params.yaml gets into git; give keys as the library for it wants them, such as "
            "AWS_PROFILE"
        )
    found = _expanded(pattern)
    if not slash or "*" in rest or not rest.isprintable() or any(".." in url.split("/") for url in found):
        raise SourceError(
            f"{shown(pattern)}: wanted a folder, a .tar or a .parquet, or a pattern such as {{000..099}}.tar"
        )
    if len(found) != len(set(found)):
        raise SourceError(f"{shown(pattern)} names a file twice")
    return found


def _expanded(pattern: str) -> list[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    found = [""]
    for place, part in enumerate(parts):
        choices = _choices(part, pattern) if place % 2 else [part]
        if len(found) * len(choices) > _MOST:
            raise SourceError(f"{shown(pattern)} stands for more than {_MOST:,} files")
        found = [before + choice for before in found for choice in choices]
    return found


def _choices(inside: str, pattern: str) -> list[str]:
    if match := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside):
        first, last = int(match[1]), int(match[2])
        width = len(match[1]) if match[1].startswith("0") else 1
        if first <= last < first + _MOST:
            return [f"{number:0{width}}" for number in range(first, last + 1)]
    elif "," in inside:
        return inside.split(",")
    raise SourceError(f"{shown(pattern)}: {{{shown(inside)}}} is none of {{first..last}} and {{a,b}}")


def listing(path: str) -> dict[str, Far]:
    """Name, relative to a folder, -> the file, of all in the folder `path`; of a file or a pattern, all with their URLs
    as names. Raises SourceError."""
    wanted, hub = urls(path), path.startswith("hf://")
    if hub:
        _filesystem("hf").invalidate_cache()  # or it lists what was there when it was first asked
    if len(wanted) > 1 or wanted[0].endswith((".tar", ".parquet")) or wanted[0].rpartition("/")[2] in SETS:
        with ThreadPoolExecutor(1 if hub else _LISTED_AT_ONCE) as pool:  # the first of the hub's lists its folder
            return dict(zip(wanted, pool.map(_look, wanted)))
    (folder,) = (url.rstrip("/") for url in wanted)
    if folder.startswith(("http://", "https://")):
        raise SourceError(
            f"{folder} is no .tar and no .parquet, and web servers list no folders; name the files: "
            f"{folder}/{{000..099}}.tar"
        )
    found = _ask(folder, "listed", "find", folder, seconds=4 * SECONDS, detail=True, withdirs=False)
    files = _filesystem(folder.partition("://")[0])
    inside = files._strip_protocol(folder).rstrip("/") + "/"
    names = {key: key.removeprefix(inside) for key in sorted(found) if key.startswith(inside)}
    files_in = {key: name for key, name in names.items() if name and not name.endswith("/")}
    return {name: _far(f"{folder}/{name}", found[key]) for key, name in files_in.items()}


def _look(url: str) -> Far:
    info = _ask(url, "found", "info", url, seconds=SECONDS)
    if info.get("partial") is False:
        raise SourceError(
            f"{url}: the server says that it gives no parts of a file (Accept-Ranges: none); download it and give the "
            "folder"
        )
    return _far(url, info)


def _far(url: str, info: dict[str, Any]) -> Far:
    size = info.get("size")
    if not isinstance(size, int):
        raise SourceError(
            f"{url}: the server does not say how long it is, so no parts of it can be read; download it and give the "
            "folder"
        )
    keys = [key for key in _VERSIONS if info.get(key)] or [key for key in _TIMES if info.get(key)]
    version = [f"{key}={info[key]}" for key in keys]
    digest = hashlib.blake2b(" ".join(version).encode("utf-8", "replace"), digest_size=16).digest()
    first, second = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
    return Far(url, (size, first, 0 if version else _FOR_EVER, second))


def whole(url: str, most: int) -> bytes:
    """All bytes of a small file. Raises SourceError, also for one of more than `most` bytes."""
    size = _look(url).stamp[0]
    if size > most:
        raise SourceError(f"{url}: {size} bytes is too long for such a file (above {most})")
    return read(url, size, 0)


def read(url: str, size: int, at: int) -> bytes:
    """`size` bytes from `at` on, which must be there. Raises SourceError."""
    if not size:
        return b""

    def check(data: bytes) -> None:
        if len(data) != size:
            raise OSError(f"{len(data)} bytes came, of {size}")

    what = f"read (bytes {at} to {at + size})"
    return _ask(url, what, "cat_file", url, seconds=SECONDS + size / PER_SECOND, check=check, start=at, end=at + size)


class RangeFile(io.RawIOBase):
    """A far file as Python's files are, for pyarrow."""

    def __init__(self, far: Far):
        self._far, self._at = far, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._far.stamp[0]}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._far.stamp[0] - self._at))
        buffer[:count] = read(self._far.url, count, self._at)
        self._at += count
        return count


class Blocks:
    """Bytes of a far file that are asked for in small pieces and in order, such as a tar's headers: whole blocks are
    read, and the last ones kept."""

    BLOCK, KEPT = 1 << 20, 4

    def __init__(self, far: Far):
        self._far = far
        self._block = lru_cache(self.KEPT)(self._read)

    def _read(self, number: int) -> bytes:
        begin = number * self.BLOCK
        return read(self._far.url, min(self.BLOCK, self._far.stamp[0] - begin), begin)

    def __call__(self, size: int, at: int) -> bytes:
        end = min(at + size, self._far.stamp[0])
        if end <= at:
            return b""
        first, last = at // self.BLOCK, (end - 1) // self.BLOCK
        data = b"".join(map(self._block, range(first, last + 1)))
        return data[at - first * self.BLOCK : end - first * self.BLOCK]


def _ask(
    url: str, what: str, method: str, *words: Any, seconds: float, check: Callable = lambda _: None, **named: Any
) -> Any:
    """What a file system's method gives, asked several times. Raises SourceError."""
    files = _filesystem(url.partition("://")[0])
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if files.async_impl:
                found = sync(files.loop, getattr(files, f"_{method}"), *words, timeout=seconds, **named)
            else:
                found = getattr(files, method)(*words, **named)
            check(found)
            return found
        except Exception as error:  # each library has its own, and none of them is a mistake of ours to hide
            said = " ".join(str(error).split()) or f"nothing came within {seconds:.0f} seconds"
            reason = f"{type(error).__name__}: {said}"
            if (do := _final(error)) is not None:
                raise SourceError(f"{url} cannot be {what}: {do} ({shown(reason)})") from None
            if attempt < ATTEMPTS:
                time.sleep(WAITS * 2 ** (attempt - 1))
    raise SourceError(
        f"{url} cannot be {what}, tried {ATTEMPTS} times; last: {shown(reason)}. Look at the network and whether the "
        "server answers, then run it again: what was read is remembered"
    )


class _NoRanges(Exception):
    """A web server answers a request for a part of a file with all of it."""


async def _refuse_whole(response: Any) -> None:
    """Before the body is read, which may be large."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", response.request_info.headers.get("Range", ""))
    if asked and response.status == 200 and response.content_length != int(asked[2]) - int(asked[1]) + 1:
        raise _NoRanges(f"it answered {asked[0]} with 200, the whole file, and not with 206")


def _final(error: Exception) -> str | None:
    """What to do about an error that comes again however often one asks; None for others."""
    if isinstance(error, _NoRanges):
        return (
            "this server gives no parts of a file; download it and give the folder, or use a server that serves ranges"
        )
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) or status in (404, 410):
        return "it is not there; look at its name in data.images, or in the .urls file that it names"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in name:
        return (
            "it may not be read with the keys that were found, or none were; set those of the library (AWS_PROFILE or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, …), or FSSPEC_S3_ANON=true for public data"
        )
    return None


@lru_cache
def _filesystem(scheme: str) -> fsspec.AbstractFileSystem:
    """Raises SourceError when its package is absent."""
    package = SCHEMES[scheme]
    try:
        importlib.import_module(package)
    except ImportError:
        do = f".venv/bin/pip install {package}"
        if package == "s3fs":
            do = "make repro S3=1, or .venv/bin/pip install -r requirements-s3.txt"
        raise SourceError(f"{scheme}:// needs the package {package}, which is not installed: {do}") from None
    logging.getLogger("aiobotocore").setLevel(logging.WARNING)  # which tells where it found keys
    options: dict[str, Any] = {"use_listings_cache": False}
    if package == "s3fs":
        once = {"total_max_attempts": 1}
        options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": SECONDS, "retries": once}
    if package == "aiohttp":
        options["client_kwargs"] = {"raise_for_status": _refuse_whole}
    files = fsspec.filesystem(scheme, **options)
    files.retries = 1  # s3fs's own: _ask tries again
    if package == "huggingface_hub":  # else it lists the file's folder, and asks for 5 MB behind each range
        cat_file = type(files).cat_file.__get__(files)
        files.cat_file = lambda url, start, end: cat_file(url, start, end, cache_type="none", size=end)
    return files
