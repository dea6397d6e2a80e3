"""Safetensors files, streamed: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the data).

The reader checks the whole header before any tensor is read; nothing is ever unpickled."""

import json
from pathlib import Path

from pipeline.stage import StageError
from pipeline.weights.stream import Stream
from pipeline.weights.tensor import Span, Tensor, size

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {name: code for code, name in _DTYPES.items()}
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "I32": 32,
         "U32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64}  # fmt: skip


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
                f"{path}: tensor {name} begins at byte {begin} of the data, {fault} (which ends at {expected})"
            )
        expected = begin + tensor.nbytes
    if end < expected:
        raise StageError(f"{path} is cut short: its header wants {expected:,} bytes of data and {end:,} are there; "
                         "download or copy it again")  # fmt: skip
    if end > expected:
        raise StageError(f"{path} has {end - expected:,} bytes after its last tensor; download or copy it again")
    return dict(ordered)


class Writer(Stream):
    """Writes a safetensors file: the header at once, then each tensor's bytes as they come, in the order of `entries`.

    entries: name -> (dtype, shape), dtypes of tensor.NUMPY. The metadata is what PyTorch's readers ask for."""

    def __init__(self, path: str | Path, entries: dict[str, tuple[str, tuple[int, ...]]]):
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
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


def _header(path: Path) -> tuple[dict, int]:
    """The parsed header, and where the data begins."""
    with open(path, "rb") as file:
        prefix = file.read(64)
        length = int.from_bytes(prefix[:8], "little")
        if len(prefix) < 9 or prefix[8:9] != b"{" or length > MAX_HEADER:
            raise StageError(f"{path} {_what_it_is(prefix, length)}")
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise StageError(f"{path} is cut short: its header has {length:,} bytes and {len(text):,} are there; "
                         "download or copy it again")  # fmt: skip
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise StageError(f"{path} is not a safetensors file: its header is not sound JSON ({error})") from None
    return header, 8 + length


def _unique(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return table


def _what_it_is(prefix: bytes, length: int) -> str:
    wanted = "Wanted a safetensors file"
    # Zip (torch.save since 1.6) and the pickle protocols 2 to 5 (older .ckpt, .bin, .pt).
    if prefix.startswith(b"PK") or (prefix[:1] == b"\x80" and prefix[1:2] in b"\2\3\4\5"):
        return (f"holds pickled PyTorch weights, which can run any code when opened, so it is not read. {wanted}: "
                "most models are published as one, and safetensors.torch.save_file makes one")  # fmt: skip
    if prefix.startswith(b"version https://git-lfs"):
        return f"is a git-lfs pointer, not the weights. {wanted}: run `git lfs pull`"
    if not prefix:
        return f"is empty. {wanted}"
    if prefix[8:9] == b"{":
        return f"has a header of {length:,} bytes, more than the {MAX_HEADER:,} allowed. {wanted}"
    return f"begins with {prefix[:8]!r}. {wanted}"


def _tensor(path: Path, start: int, name: str, entry: object) -> Tensor:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in [*shape, begin, end]) and isinstance(code, str)
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise StageError(f"{path}: tensor {name} has no sound dtype, shape and data_offsets: {entry!r}")
    dtype = _DTYPES.get(code, code)
    bits = {"float32": 32, "float16": 16, "bfloat16": 16}.get(dtype) or _BITS.get(code)
    if bits is None:
        raise StageError(f"{path}: tensor {name} has the unknown dtype {code!r}")
    count = 1
    for length in shape:
        count *= length
    if end - begin != count * bits // 8:
        raise StageError(f"{path}: tensor {name} ({code} {shape}) takes {count * bits // 8:,} bytes, "
                         f"its data_offsets give it {end - begin:,}")  # fmt: skip
    return Tensor(dtype, tuple(shape), (Span(path, start + begin, end - begin),))
