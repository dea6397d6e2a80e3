"""The streaming reader and writer against the safetensors library, and headers that must be refused."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from pipeline.stage import StageError
from pipeline.weights import safetensors as streamed
from pipeline.weights.tensor import CHUNK

RNG = np.random.default_rng(1)
ARRAYS = {
    "z.weight": RNG.standard_normal((3, CHUNK // 4)).astype(np.float32),  # three chunks
    "a.bias": RNG.standard_normal(7).astype(np.float16),
    "scalar": np.array(4.5, np.float32),
}


@pytest.fixture
def file(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"title": "x"})
    return tmp_path / "x.safetensors"


def test_reads_what_the_library_wrote(file):
    tensors = streamed.read(file)
    assert set(tensors) == set(ARRAYS)
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (ARRAYS[name].dtype.name, ARRAYS[name].shape)
        np.testing.assert_array_equal(tensor.array(), ARRAYS[name])
        assert b"".join(map(bytes, tensor.chunks())) == ARRAYS[name].tobytes()


def test_the_library_reads_what_was_written(tmp_path):
    with streamed.Writer(tmp_path / "y", {name: (a.dtype.name, a.shape) for name, a in ARRAYS.items()}) as writer:
        for name, array in ARRAYS.items():
            writer.begin(name, array.dtype.name, array.shape)
            for part in np.array_split(array.reshape(-1), min(3, array.size)):
                writer.write(part)
    back = safetensors.numpy.load_file(tmp_path / "y")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
    assert list(streamed.read(tmp_path / "y")) == list(ARRAYS)  # the data stand in the order given


def test_metadata_are_read_and_other_values_are_not_text(file, tmp_path):
    assert streamed.metadata(file) == {"title": "x"}
    assert streamed.metadata(raw_file(tmp_path / "n", {})) == {}
    assert streamed.metadata(raw_file(tmp_path / "o", {"__metadata__": {"a": 1, "b": "2"}})) == {"b": "2"}
    assert streamed.metadata(raw_file(tmp_path / "l", {"__metadata__": [1]})) == {}


def test_bfloat16_bits_survive(tmp_path):
    bits = RNG.integers(0, 1 << 16, (5, 3), np.uint16)
    with streamed.Writer(tmp_path / "b", {"w": ("bfloat16", (5, 3))}) as writer:
        writer.add("w", bits, dtype="bfloat16")
    raw = (tmp_path / "b").read_bytes()
    assert json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["w"]["dtype"] == "BF16"
    with safetensors.safe_open(tmp_path / "b", "numpy") as library:  # NumPy has no bfloat16, so the shape alone
        assert library.get_slice("w").get_dtype() == "BF16" and library.get_slice("w").get_shape() == [5, 3]
    tensor = streamed.read(tmp_path / "b")["w"]
    assert tensor.dtype == "bfloat16"
    np.testing.assert_array_equal(tensor.array(), bits)


def raw_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=None, dtype="F16"):
    return {"dtype": dtype, "shape": [(end - begin) // 2] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, data, message",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensor b .*overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "tensor b .*hole"),
        ({"a": entry(0, 8)}, 7, "cut short: its header wants 8 bytes of data and 7"),
        ({"a": entry(0, 8)}, 9, "1 bytes after its last tensor"),
        ({"a": entry(0, 8, [5])}, 8, "tensor a .*takes 10 bytes, its data_offsets give it 8"),
        ({"a": entry(0, 8, [-4])}, 8, "tensor a has no sound dtype"),
        ({"a": entry(0, 8, [2.0, 2])}, 8, "tensor a has no sound dtype"),
        ({"a": entry(0, 8, dtype="F12")}, 8, "unknown dtype 'F12'"),
        ({"a": [1]}, 8, "tensor a has no sound dtype"),
        (b'{"a": 1, "a": 2}', 0, "'a' stands twice"),
        (b"{" + b'"a":{' * 100_000, 0, "not sound JSON"),
        (b'{"\\ud800": {"dtype":"F16","shape":[1],"data_offsets":[0,2]}}', 2, "not sound JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "not sound JSON"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(60_000)) + b',"0":1}', 0, "'0' stands twice"),
        ({"a": entry(0, 8, [1 << 63, 0])}, 8, "tensor a has no sound dtype"),
        ({"a": entry(0, 8, [10**200] * 60)}, 8, "tensor a has no sound dtype"),
        ({"a": entry(0, 8, [1] * 100_000)}, 8, "tensor a has no sound dtype"),
        ({"a": entry(0, 8, "abcd")}, 8, "tensor a has no sound dtype"),
        ({"a": {"dtype": "F16", "shape": [4], "data_offsets": [8, 0]}}, 8, "tensor a has no sound dtype"),
        ({"\x1b[2J" + "n" * 999: entry(0, 4, [1])}, 4, r"tensor \\x1b\[2Jn+… .*takes 2 bytes"),
        (b"{\xff", 0, "not sound JSON"),
    ],
)
def test_unsound_headers_are_refused(tmp_path, header, data, message):
    with pytest.raises(StageError, match=message):
        streamed.read(raw_file(tmp_path / "x.safetensors", header, bytes(data)))


@pytest.mark.parametrize("cut", [0, 4, 8, 9, 50, -1])
def test_a_truncated_file_is_refused(file, cut):
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(StageError, match="cut short|is empty|Wanted a safetensors file"):
        streamed.read(file)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "x").write_bytes((1 << 40).to_bytes(8, "little") + b"{")
    with pytest.raises(StageError, match="more than the 100,000,000 allowed"):
        streamed.read(tmp_path / "x")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip"])
def test_pickled_weights_are_named_and_never_opened(tmp_path, protocol):
    path = tmp_path / "model.ckpt"
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(StageError, match="model.ckpt holds pickled PyTorch weights.*not read"):
        streamed.read(path)


def test_other_files_say_what_they_begin_with(tmp_path):
    (tmp_path / "p").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(StageError, match="git-lfs pointer"):
        streamed.read(tmp_path / "p")
    (tmp_path / "h").write_bytes(b"<!doctype html><html>")
    with pytest.raises(StageError, match="begins with b'<!doctyp'"):
        streamed.read(tmp_path / "h")


def test_the_writer_keeps_to_what_it_announced(tmp_path):
    with (
        pytest.raises(ValueError, match="announced"),
        streamed.Writer(tmp_path / "x", {"a": ("float32", (2,))}) as writer,
    ):
        writer.begin("b", "float32", (2,))
    with (
        pytest.raises(ValueError, match="1 more tensors, first a"),
        streamed.Writer(tmp_path / "x", {"a": ("float32", (2,))}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="a lacks 4 bytes"),
        streamed.Writer(tmp_path / "x", {"a": ("float32", (2,))}) as writer,
    ):
        writer.begin("a", "float32", (2,))
        writer.write(bytes(4))
    with (
        pytest.raises(ValueError, match="a got 4 bytes too many"),
        streamed.Writer(tmp_path / "x", {"a": ("float32", (2,))}) as writer,
    ):
        writer.begin("a", "float32", (2,))
        writer.write(bytes(12))


def test_a_changed_byte_is_refused_or_stays_inside_the_file(tmp_path):
    """Every byte of a small header, four values each: StageError or tensors that can be read, never another error."""
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": ARRAYS["a.bias"], "b": ARRAYS["scalar"]}, path)
    raw = path.read_bytes()
    refused = 0
    for position in range(len(raw) - 18):
        for value in (0, ord("9"), ord('"'), 0xFF):
            path.write_bytes(raw[:position] + bytes([value]) + raw[position + 1 :])
            try:
                assert sum(len(b"".join(map(bytes, tensor.chunks()))) for tensor in streamed.read(path).values()) == 18
            except StageError:
                refused += 1
    assert refused > 2 * len(raw)
