"""train.tensorboard: event files with the points of log.jsonl, each once. On the stub of the UNet.

TensorBoard 2.21's own EventAccumulator read scalars and pictures of such files as they are, once and by hand."""

import io
import json
import struct

import pytest

tensorboardX = pytest.importorskip("tensorboardX")
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.training import preview, run, tensorboard  # noqa: E402
from tests.training.test_train import stubbed, train, workspace  # noqa: E402

__all__ = ["stubbed", "train", "workspace"]  # fixtures
SETTINGS = {
    "train.tensorboard": True, "train.validation_share": 0.2, "train.validation_interval": 2,
    "train.checkpointing_steps": 2, "train.steps": 5, "train.sample_interval": 3,
}  # fmt: skip


def crc(data: bytes) -> int:
    """CRC-32C, masked as TFRecord has it (tensorflow/core/lib/hash/crc32c.h)."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ 0x82F63B78 * (found & 1)
    found ^= 0xFFFFFFFF
    return (found >> 15 | found << 17) + 0xA282EAD8 & 0xFFFFFFFF


def fields(data: bytes):
    """(number, value) of a message of protobuf, in order."""
    place = 0

    def varint() -> int:
        nonlocal place
        found = shift = 0
        while True:
            byte, place = data[place], place + 1
            found |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return found

    while place < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield number, data[place : place + length]
        place += length


def events(folder):
    """(name, step) -> all its values, of event files as TensorBoard reads them: TFRecords, whose checksums it looks at, of
    tensorflow/core/util/event.proto and framework/summary.proto. It knows nothing of tensorboardX."""
    found = {}
    for path in folder.iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            body = data[place + 12 : place + 12 + length]
            assert struct.unpack_from("<I", data, place + 8) == (crc(data[place : place + 8]),)
            assert struct.unpack_from("<I", data, place + 12 + length) == (crc(body),)
            event = dict(fields(body))
            for _, value in fields(event.get(5, b"")):  # summary
                parts = dict(fields(value))
                if 2 in parts:  # simple_value
                    (shown,) = struct.unpack("<f", parts[2])
                else:  # image: its encoded_image_string
                    shown = Image.open(io.BytesIO(dict(fields(parts[4]))[4])).convert("RGB")
                found.setdefault((parts[1].decode(), event.get(2, 0)), []).append(shown)
            place += 12 + length + 4
    return found


def points(live):
    rows = [json.loads(line) for line in (live / "log.jsonl").read_text().splitlines()]
    return {(name, row["step"]): [value] for row in rows for name, value in row.items() if name != "step"}


def test_a_resumed_run_has_each_point_once(train, tmp_path, monkeypatch):
    check = run._check
    monkeypatch.setattr(
        preview, "vae_decoder", lambda *_: lambda latents: np.tanh(latents[:, :3]).repeat(8, 2).repeat(8, 3)
    )

    def killed(result, *args):
        check(result, *args)
        if result.done == 4:
            raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(run, "_check", killed)
        train(**SETTINGS)
    train(**SETTINGS)
    found, wanted = events(tmp_path / "out/tensorboard"), points(tmp_path / "out/live")
    for step in (3, 5):
        (drawn,) = found.pop(("previews", step))
        with Image.open(tmp_path / f"out/live/pictures/step-{step:08d}.png") as picture:
            np.testing.assert_array_equal(drawn, picture.convert("RGB"))
    assert {("validation/loss", step) for step in (0, 2, 4, 5)} < found.keys() == wanted.keys()
    for name, values in found.items():
        assert values == pytest.approx(wanted[name], rel=1e-6), name
    train(**SETTINGS | {"train.tensorboard": False, "train.seed": 1})
    assert not (tmp_path / "out/tensorboard").exists()


def test_it_is_made_of_finished_curves_too(tmp_path):
    """As for outs that are taken from the store; with the pictures."""
    live = tmp_path / "train/live"
    (live / "pictures").mkdir(parents=True)
    (live / "log.jsonl").write_text(
        '{"step": 3, "train/loss": 0.5, "validation/loss": NaN}\n{"step": 4, "train/loss": 0.25}\n'
    )
    Image.new("RGB", (6, 4)).save(live / "pictures/step-00000004.png")
    for _ in range(2):
        tensorboard.writer(live).close()
    found = events(tmp_path / "train/tensorboard")
    assert str(found.pop(("validation/loss", 3))) == "[nan]"
    (picture,) = found.pop(("previews", 4))
    assert picture.size == (6, 4)
    assert found == {("train/loss", 3): [0.5], ("train/loss", 4): [0.25]}
