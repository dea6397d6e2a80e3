"""MindSpore's .ckpt, read and written without MindSpore.

It is the protobuf message (mindspore.train.checkpoint_pb2)

    Checkpoint { repeated Value value = 1; }   Value { string tag = 1; TensorProto tensor = 2; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

with one Value per parameter, or several in a row with the same tag and the parts of one large parameter. A scalar has
dims [0] or none. Repeated fields join under concatenation, so the file is written value by value. With
`crc_check=True` MindSpore appends `crc_num` and ten bytes, which it does not look at itself unless it is asked to."""

from pathlib import Path
from typing import BinaryIO

from pipeline.stage import StageError, shown
from pipeline.weights.stream import Stream
from pipeline.weights.tensor import NUMPY, Span, Tensor, size

_TYPES = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}
_DTYPES = {written: name for name, written in _TYPES.items()}
# ms.save_checkpoint cuts parameters here; protobuf itself cannot hold a message of 2 GiB.
_SLICE = 512 << 20

_VARINT, _BYTES = 0, 2  # protobuf wire types
_LONGEST_VARINT = 10
_CRC = b"crc_num", 10  # what it begins with, and how many bytes follow

# Far more than any checkpoint has, so that no file keeps the reader busy or fills the memory.
_MOST_VALUES = 200_000
_MOST_FIELDS = 200  # of a value or a tensor: one for each dimension, and some
_MOST_AXES = 64
_LARGEST = 1 << 63


def read(path: str | Path) -> dict[str, Tensor]:
    """Name -> Tensor in file order; finds the tensors and reads none of their values.

    Raises StageError when the file is cut short or is no MindSpore checkpoint."""
    path = Path(path)
    if path.stat().st_size == 0:
        raise StageError(f"{path} is empty; wanted a MindSpore checkpoint")
    found: dict[str, tuple[str, tuple[int, ...], list[Span]]] = {}
    with open(path, "rb", buffering=512) as file:  # a value's head and little of its content
        try:
            last, length = None, path.stat().st_size
            for field, kind, begin, end in _fields(file, 0, _without_crc(file, length), _MOST_VALUES):
                if (field, kind) != (1, _BYTES):
                    raise _Malformed(f"field {field} of wire type {kind} at byte {begin}")
                tag, dtype, dims, content = _value(file, begin, end)
                _, _, spans = found.setdefault(tag, (dtype, dims, []))
                if found[tag][:2] != (dtype, dims) or (spans and tag != last):
                    raise _Malformed(f"{shown(tag)} stands there twice")
                spans.append(Span(path, *content))
                last = tag
        except _CutShort:
            raise StageError(f"{path} is cut short (or is no MindSpore checkpoint): a value goes past its "
                             f"{length:,} bytes; make or copy it again") from None  # fmt: skip
        except _Malformed as error:
            raise StageError(f"{path} is not a MindSpore checkpoint: {error}") from None

    tensors = {}
    for tag, (dtype, dims, spans) in found.items():
        scalar = dims == (0,) and any(span.size for span in spans)
        tensor = Tensor(_DTYPES.get(dtype, dtype), () if scalar else dims, tuple(spans))
        if tensor.dtype in NUMPY and tensor.nbytes != (wanted := size(tensor.dtype, tensor.shape)):
            raise StageError(f"{path}: {shown(tag)} ({dtype} {tensor.shape}) takes {wanted:,} bytes and "
                             f"{tensor.nbytes:,} are there; make or copy the file again")  # fmt: skip
        tensors[tag] = tensor
    return tensors


def begins(prefix: bytes) -> bool:
    """Whether a file that begins so can be a MindSpore checkpoint: its first field is a value."""
    return prefix[:1] == b"\x0a"


class Writer(Stream):
    """Writes a .ckpt that ms.load_checkpoint opens: begin(name, dtype, shape), then write(bytes) chunk by chunk.

    Raises ValueError for a tensor without elements too: dims [0] are a scalar here."""

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        if 0 in shape:
            raise ValueError(f"{name} has no elements: shape {shape}")
        super().begin(name, dtype, shape)
        tag = _field(1, name.encode())
        dims = b"".join(b"\x08" + _varint(length) for length in shape or (0,))
        self._head = tag, dims + _field(2, _TYPES[dtype].encode())
        self._slice_left = 0

    def _put(self, view: memoryview) -> None:
        while view:
            if not self._slice_left:
                # `_left` has been lowered by this view already.
                self._slice_left = min(_SLICE, self._left + len(view))
                super()._put(memoryview(_slice_head(*self._head, self._slice_left)))
            part = view[: self._slice_left]
            super()._put(part)
            self._slice_left -= len(part)
            view = view[len(part) :]


def _slice_head(tag: bytes, tensor: bytes, content: int) -> bytes:
    """The bytes of a Value up to its tensor's content."""
    tensor += b"\x1a" + _varint(content)
    value = tag + b"\x12" + _varint(len(tensor) + content) + tensor
    return b"\x0a" + _varint(len(value) + content) + value


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


class _Malformed(Exception):
    """The bytes are not this protobuf message."""


class _CutShort(Exception):
    """A length points past the end."""


def _read_varint(file: BinaryIO, position: int, end: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    file.seek(position)
    number = 0
    for index, byte in enumerate(file.read(min(_LONGEST_VARINT, end - position))):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if number >= _LARGEST:
                raise _Malformed(f"a number of more than 63 bits at byte {position}")
            return number, position + index + 1
    if end - position >= _LONGEST_VARINT:
        raise _Malformed(f"a number of more than 64 bits at byte {position}")
    raise _CutShort


def _without_crc(file: BinaryIO, length: int) -> int:
    """Where the message ends."""
    begins, more = _CRC
    start = length - more - len(begins)
    file.seek(max(start, 0))
    return start if start > 0 and file.read(len(begins)) == begins else length


def _fields(file: BinaryIO, position: int, end: int, most: int = _MOST_FIELDS):
    """Yield (field number, wire type, begin, end) of a message's fields; begin and end hold the content."""
    start, count = position, 0
    while position < end:
        count += 1
        if count > most:
            raise _Malformed(f"more than {most:,} fields in the message at byte {start}")
        key, position = _read_varint(file, position, end)
        field, kind = key >> 3, key & 7
        if kind == _BYTES:
            length, position = _read_varint(file, position, end)
            stop = position + length
        elif kind == _VARINT:
            _, stop = _read_varint(file, position, end)
        else:
            raise _Malformed(f"wire type {kind} at byte {position}")
        if stop > end:
            raise _CutShort
        yield field, kind, position, stop
        position = stop


def _value(file: BinaryIO, begin: int, end: int) -> tuple[str, str, tuple[int, ...], tuple[int, int]]:
    """One Value: tag, tensor_type, dims, and (offset, size) of the content."""
    parts = {(field, kind): (start, stop) for field, kind, start, stop in _fields(file, begin, end)}
    if (1, _BYTES) not in parts or (2, _BYTES) not in parts:
        raise _Malformed(f"the value at byte {begin} has no name and tensor")
    tag = _text(file, *parts[1, _BYTES])
    dims, dtype, content = [], None, None
    for field, kind, start, stop in _fields(file, *parts[2, _BYTES]):
        if field == 1:  # one number each, or packed into one field
            while start < stop:
                length, start = _read_varint(file, start, stop)
                dims.append(length)
                if len(dims) > _MOST_AXES:
                    raise _Malformed(f"more than {_MOST_AXES} dimensions of {shown(tag)}")
        elif (field, kind) == (2, _BYTES):
            dtype = _text(file, start, stop)
        elif (field, kind) == (3, _BYTES):
            content = start, stop - start
    if dtype is None or content is None:
        raise _Malformed(f"{shown(tag)} has no tensor_type and tensor_content")
    return tag, dtype, tuple(dims), content


def _text(file: BinaryIO, begin: int, end: int) -> str:
    if end - begin > 4096:
        raise _Malformed(f"a name of {end - begin:,} bytes at byte {begin}")
    file.seek(begin)
    try:
        return file.read(end - begin).decode()
    except UnicodeDecodeError:
        raise _Malformed(f"a name that is not UTF-8 at byte {begin}") from None
