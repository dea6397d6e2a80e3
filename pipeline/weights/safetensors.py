"""Safetensors files, streamed: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the data).

The reader checks the whole header before any tensor is read; nothing is ever unpickled."""

import hashlib
import json
import math
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.stage import StageError, shown
from pipeline.weights import signature
from pipeline.weights.stream import Stream
from pipeline.weights.tensor import Span, Tensor, size

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {name: code for code, name in _DTYPES.items()}
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8,
         "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
         "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}  # fmt: skip
_LARGEST = 1 << 63  # sizes and offsets are 64-bit integers
_MOST_AXES = 64  # NumPy's limit


def read(path: str | Path) -> dict[str, Tensor]:
    """Name -> Tensor, in the order of the data. Reads the header alone.

    Raises StageError when the file is not safetensors, is cut short, or its header is not sound."""
    path = Path(path)
    header, start = _header(path)
    end = path.stat().st_size - start
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            tensors[name] = _tensor(path, start, name, entry)

    expected = 0
    ordered = sorted(tensors.items(), key=lambda item: (item[1].spans[0].offset, item[1].nbytes))
    for name, tensor in ordered:
        begin = tensor.spans[0].offset - start
        if begin != expected:
            fault = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise StageError(
                f"{path}: tensor {shown(name)} begins at byte {begin} of the data, {fault} (which ends at {expected})"
            )
        expected = begin + tensor.nbytes
    if end < expected:
        raise StageError(f"{path} is cut short: its header wants {expected:,} bytes of data and {end:,} are there; "
                         "download or copy it again")  # fmt: skip
    if end > expected:
        raise StageError(f"{path} has {end - expected:,} bytes after its last tensor; download or copy it again")
    return dict(ordered)


def metadata(path: str | Path) -> dict[str, str]:
    """The header's `__metadata__`, empty when there is none. Raises StageError as `read` does."""
    found = _header(Path(path))[0].get("__metadata__")
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def data_sha256(path: str | Path) -> str:
    """SHA-256 of all that follows the header, in hex digits. Raises StageError as `read` does."""
    _, start = _header(Path(path))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_in_header(path: str | Path, old: str, new: str) -> None:
    """Write `new` over `old`, ASCII of one length that the header holds once."""
    _, start = _header(Path(path))
    with open(path, "r+b") as file:
        header = file.read(start)
        if len(old) != len(new) or header.count(old.encode()) != 1:
            raise ValueError(f"{old} stands {header.count(old.encode())} times in the header of {path}")
        file.seek(header.index(old.encode()))
        file.write(new.encode())
        file.flush()
        os.fsync(file.fileno())


def is_one(path: Path) -> bool:
    """Whether a file says in its first bytes that it is a safetensors file."""
    with open(path, "rb") as file:
        return begins(file.read(signature.LENGTH))


def begins(prefix: bytes) -> bool:
    """Whether a file that begins so (9 bytes or more) says that it is a safetensors file."""
    return prefix[8:9] == b"{" and int.from_bytes(prefix[:8], "little") <= MAX_HEADER


class Writer(Stream):
    """Writes a safetensors file: the header at once, then each tensor's bytes as they come, in the order of `entries`.

    entries: name -> (dtype, shape), dtypes of tensor.NUMPY. To `metadata` comes what PyTorch's readers ask for."""

    def __init__(
        self,
        path: str | Path,
        entries: dict[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str] = MappingProxyType({}),
    ):
        header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        offset = 0
        for name, (dtype, shape) in entries.items():
            end = offset + size(dtype, shape)
            header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        super().__init__(path)
        self._expected = list(entries.items())
        self._file.write(memoryview(len(text).to_bytes(8, "little") + text))

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        wanted = self._expected[len(self._names)] if len(self._names) < len(self._expected) else None
        if wanted != (name, (dtype, shape)):
            raise ValueError(f"the header announced {wanted} here, not {(name, (dtype, shape))}")
        super().begin(name, dtype, shape)

    def close(self) -> None:
        missing = [name for name, _ in self._expected[len(self._names) :]]
        super().close()
        if missing:
            raise ValueError(f"the header announced {len(missing)} more tensors, first {missing[0]}")


def _last_byte(file) -> bytes:
    file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
    return file.read(1)


def _header(path: Path) -> tuple[dict, int]:
    """The parsed header, and where the data begins."""
    with open(path, "rb") as file:
        prefix = file.read(signature.LENGTH)
        length = int.from_bytes(prefix[:8], "little")
        if not begins(prefix):
            large = prefix[8:9] == b"{"
            last = _last_byte(file)
            what = f"has a header of {length:,} bytes, more than the {MAX_HEADER:,} allowed. {signature.WANTED}"
            raise StageError(f"{path} {what if large else signature.describe(prefix, last)}")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise StageError(f"{path} is cut short: its header has {length:,} bytes and {len(text):,} are there; "
                         "download or copy it again")  # fmt: skip
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        "".join(header).encode()  # JSON's \ud800 is no character, and could not be printed
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not a safetensors file: its header is not sound JSON ({shown(str(error))}); "
                         "download or copy it again") from None  # fmt: skip
    return header, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict:
    table: dict[str, object] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"{name!r} stands twice")
        table[name] = value
    return table


def _tensor(path: Path, start: int, name: str, entry: object) -> Tensor:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        sound = (
            isinstance(code, str)
            and isinstance(shape, list)
            and len(shape) <= _MOST_AXES
            and all(type(n) is int and 0 <= n < _LARGEST for n in numbers)
            and begin <= end
        )
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise StageError(
            f"{path}: tensor {shown(name)} has no sound dtype, shape and data_offsets: {reprlib.repr(entry)}"
        )
    if code not in _BITS:
        raise StageError(f"{path}: tensor {shown(name)} has the unknown dtype {shown(code)!r}; wanted one of "
                         f"{', '.join(_CODES.values())}")  # fmt: skip
    nbytes = (math.prod(shape) * _BITS[code] + 7) // 8
    if end - begin != nbytes:
        raise StageError(f"{path}: tensor {shown(name)} ({code} {shape}) takes {nbytes:,} bytes, "
                         f"its data_offsets give it {end - begin:,}")  # fmt: skip
    return Tensor(_DTYPES.get(code, code), tuple(shape), (Span(path, start + begin, end - begin),))
