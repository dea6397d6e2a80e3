"""The .ckpt reader and writer against MindSpore's own."""

import pipeline.device  # noqa: F401  (sets what MindSpore reads at its import)

import numpy as np
import pytest

import mindspore as ms  # isort: skip

from pipeline.stage import StageError
from pipeline.weights import ckpt
from tests.golden.compare import peak

pytestmark = pytest.mark.usefixtures("device")  # before any test in this process makes a MindSpore tensor

RNG = np.random.default_rng(2)
FLOAT32 = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
FLOAT16 = RNG.standard_normal((5, 7)).astype(np.float16)
BFLOAT16 = (RNG.standard_normal((6, 2)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
SCALAR = np.array(4.625, np.float16)


def write(path):
    with ckpt.Writer(path) as writer:
        writer.add("a.gamma", FLOAT32)
        writer.add("b.weight", FLOAT16)
        writer.add("c.weight", BFLOAT16, dtype="bfloat16")
        writer.add("logit_scale", SCALAR)
    return path


def check_mindspore_reads(path):
    loaded = ms.load_checkpoint(str(path))
    assert list(loaded) == ["a.gamma", "b.weight", "c.weight", "logit_scale"]
    assert [p.dtype for p in loaded.values()] == [ms.float32, ms.float16, ms.bfloat16, ms.float16]
    np.testing.assert_array_equal(loaded["a.gamma"].asnumpy(), FLOAT32)
    np.testing.assert_array_equal(loaded["b.weight"].asnumpy(), FLOAT16)
    widened = (BFLOAT16.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(loaded["c.weight"].astype(ms.float32).asnumpy(), widened)
    assert loaded["logit_scale"].shape == () and loaded["logit_scale"].asnumpy() == SCALAR


def check_reads(path):
    tensors = ckpt.read(path)
    assert [(n, t.dtype, t.shape) for n, t in tensors.items()] == [
        ("a.gamma", "float32", (4, 3, 3, 3)),
        ("b.weight", "float16", (5, 7)),
        ("c.weight", "bfloat16", (6, 2)),
        ("logit_scale", "float16", ()),
    ]
    for tensor, values in zip(tensors.values(), [FLOAT32, FLOAT16, BFLOAT16, SCALAR], strict=True):
        np.testing.assert_array_equal(tensor.array(), values)
        assert tensor.array().dtype == values.dtype
        assert b"".join(map(bytes, tensor.chunks())) == values.tobytes()


def test_mindspore_opens_what_is_written(tmp_path):
    check_mindspore_reads(write(tmp_path / "x.ckpt"))


def test_reads_back_what_is_written(tmp_path):
    check_reads(write(tmp_path / "x.ckpt"))


def test_reads_what_mindspore_saves(tmp_path):
    bf16 = ms.Tensor((BFLOAT16.astype(np.uint32) << 16).view(np.float32)).astype(ms.bfloat16)
    named = {
        "a.gamma": ms.Tensor(FLOAT32),
        "b.weight": ms.Tensor(FLOAT16),
        "c.weight": bf16,
        "logit_scale": ms.Tensor(SCALAR),
    }
    ms.save_checkpoint([{"name": name, "data": data} for name, data in named.items()], str(tmp_path / "m.ckpt"))
    check_reads(tmp_path / "m.ckpt")
    # The same bytes but for the scalar, which MindSpore 2.10 saves without dims and others with [0]; it opens both.
    ours, theirs = write(tmp_path / "x.ckpt").read_bytes(), (tmp_path / "m.ckpt").read_bytes()
    scalar = 32  # bytes of our last value
    assert ours[:-scalar] == theirs[: len(ours) - scalar]


@pytest.mark.parametrize("size", [8, 24, 64, 108, 500])
def test_large_tensors_are_cut_into_several_values(tmp_path, monkeypatch, size):
    monkeypatch.setattr(ckpt, "_SLICE", size)
    check_reads(write(tmp_path / "x.ckpt"))
    check_mindspore_reads(tmp_path / "x.ckpt")


def test_chunked_writes_give_the_same_file(tmp_path):
    write(tmp_path / "x.ckpt")
    with ckpt.Writer(tmp_path / "y.ckpt") as writer:
        for name, tensor in ckpt.read(tmp_path / "x.ckpt").items():
            writer.begin(name, tensor.dtype, tensor.shape)
            raw = b"".join(map(bytes, tensor.chunks()))
            for start in range(0, len(raw), 10):
                writer.write(raw[start : start + 10])
    assert (tmp_path / "x.ckpt").read_bytes() == (tmp_path / "y.ckpt").read_bytes()


def test_a_joined_pair_of_files_holds_both(tmp_path):
    write(tmp_path / "x.ckpt")
    with ckpt.Writer(tmp_path / "y.ckpt") as writer:
        writer.add("d", FLOAT16)
    (tmp_path / "xy.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes() + (tmp_path / "y.ckpt").read_bytes())
    assert list(ckpt.read(tmp_path / "xy.ckpt")) == ["a.gamma", "b.weight", "c.weight", "logit_scale", "d"]


def test_every_truncation_is_refused_or_lacks_whole_tensors(tmp_path):
    raw = write(tmp_path / "x.ckpt").read_bytes()
    names = ["a.gamma", "b.weight", "c.weight", "logit_scale"]
    refused = 0
    for cut in range(len(raw)):
        (tmp_path / "t.ckpt").write_bytes(raw[:cut])
        try:
            assert list(ckpt.read(tmp_path / "t.ckpt")) in (names[:1], names[:2], names[:3])
        except StageError as error:
            refused += 1
            assert "cut short" in str(error) or "is empty" in str(error)
    assert refused == len(raw) - 3  # a cut between two values is a sound, shorter file


def test_a_missing_slice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "_SLICE", 64)
    with ckpt.Writer(tmp_path / "x.ckpt") as writer:
        writer.add("a", FLOAT32)
    raw = (tmp_path / "x.ckpt").read_bytes()
    first = 2 + raw[1]  # tag and length of the first value, one byte each
    (tmp_path / "x.ckpt").write_bytes(raw[:first])
    with pytest.raises(StageError, match=r"a \(Float32 \(4, 3, 3, 3\)\) takes 432 bytes and 64 are there"):
        ckpt.read(tmp_path / "x.ckpt")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    for raw in (
        b"PK\3\4" + bytes(100),
        b"\x80\x02}q\0.",
        b"{}" * 50,
        b"\x0a\x02\x0a\x00",
        b"\xff" * 40,
        RNG.bytes(300),
    ):
        path.write_bytes(raw)
        with pytest.raises(StageError, match="x.ckpt is (not a MindSpore checkpoint|cut short)"):
            ckpt.read(path)
    path.write_bytes(b"")
    with pytest.raises(StageError, match="empty"):
        ckpt.read(path)


def test_the_check_sum_that_mindspore_appends_is_no_value(tmp_path):
    named = [{"name": "a.gamma", "data": ms.Tensor(FLOAT32)}, {"name": "b", "data": ms.Tensor(FLOAT16)}]
    ms.save_checkpoint(named, str(tmp_path / "m.ckpt"), crc_check=True)
    assert b"crc_num" in (tmp_path / "m.ckpt").read_bytes()[-17:]
    found = ckpt.read(tmp_path / "m.ckpt")
    assert list(found) == ["a.gamma", "b"]
    np.testing.assert_array_equal(found["b"].array(), FLOAT16)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x0a\x08\x0a\x01a\x12\x03\x08\x01\x1a" * 3, "x.ckpt is"),
        (b"\x0a\x90\x03\x0a\x01a\x12\x8a\x03" + b"\x08\x01" * 197, "more than 64 dimensions of a"),
        (b"\x0a\x93\x07" + b"\x0a\x01a" * 305, "more than 200 fields in the message at byte 3"),
        (b"\x0a\x00" * 300_000, "the value at byte 2 has no name and tensor"),
        (b"\x0a" + b"\xff" * 9 + b"\x7f", "more than 63 bits"),
    ],
)
def test_what_would_take_long_is_refused(tmp_path, raw, message):
    (tmp_path / "x.ckpt").write_bytes(raw)
    with pytest.raises(StageError, match=message):
        ckpt.read(tmp_path / "x.ckpt")


def test_more_values_than_any_checkpoint_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "_MOST_VALUES", 3)
    with pytest.raises(StageError, match="more than 3 fields in the message at byte 0"):
        ckpt.read(write(tmp_path / "x.ckpt"))


def test_a_name_that_comes_again_is_refused(tmp_path):
    with ckpt.Writer(tmp_path / "x.ckpt") as writer:
        writer.add("a", FLOAT32)
        writer.add("b", FLOAT16)
        with pytest.raises(ValueError, match="a was written already"):
            writer.add("a", FLOAT32)
    twice = (tmp_path / "x.ckpt").read_bytes() * 2
    (tmp_path / "x.ckpt").write_bytes(twice)
    with pytest.raises(StageError, match="a stands there twice"):
        ckpt.read(tmp_path / "x.ckpt")


def test_the_writer_counts_bytes(tmp_path):
    with pytest.raises(ValueError, match="a lacks 4 bytes"), ckpt.Writer(tmp_path / "x.ckpt") as writer:
        writer.begin("a", "float16", (4,))
        writer.write(bytes(4))
    with pytest.raises(ValueError, match="cannot be written as bfloat16"), ckpt.Writer(tmp_path / "x.ckpt") as writer:
        writer.add("a", FLOAT16, dtype="bfloat16")
    with pytest.raises(ValueError, match="no elements"), ckpt.Writer(tmp_path / "x.ckpt") as writer:
        writer.add("a", FLOAT16[:0])


def test_a_changed_byte_is_refused_or_stays_inside_the_file(tmp_path):
    """Every byte of a small file, four values each: StageError or tensors that can be read, never another error."""
    path = tmp_path / "x.ckpt"
    with ckpt.Writer(path) as writer:
        writer.add("a.gamma", FLOAT16)
        writer.add("logit_scale", SCALAR)
    raw = path.read_bytes()
    refused = 0
    for position in range(len(raw)):
        for value in (0, 0x0A, 0x7F, 0xFF):
            path.write_bytes(raw[:position] + bytes([value]) + raw[position + 1 :])
            try:
                found = ckpt.read(path).values()
                assert sum(len(chunk) for tensor in found for chunk in tensor.chunks()) <= len(raw)
            except StageError:
                refused += 1
    assert refused > 50


def test_reading_names_maps_no_values(tmp_path):
    """Pages of a mapping count as the process's memory: merge took 1.7 GB at full size, with its inputs in cache."""
    path = tmp_path / "x.ckpt"
    with ckpt.Writer(path) as writer:
        for index in range(400):
            writer.add(f"p{index}", np.ones((128, 128), np.float32))
    assert peak(lambda: ckpt.read(path)) < 5 << 20
