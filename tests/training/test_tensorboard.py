"""train.tensorboard: event files with the points of log.jsonl, each once. On the stub of the UNet.

TensorBoard 2.21's own EventAccumulator read scalars and pictures of such files as they are, once and by hand."""

import json
import struct

import pytest

tensorboardX = pytest.importorskip("tensorboardX")
from PIL import Image  # noqa: E402

from pipeline.training import run, tensorboard  # noqa: E402
from tests.training.test_train import stubbed, train, workspace  # noqa: E402

__all__ = ["stubbed", "train", "workspace"]  # fixtures
SETTINGS = {
    "train.tensorboard": True, "train.validation_share": 0.2, "train.validation_interval": 2,
    "train.checkpointing_steps": 2, "train.steps": 5,
}  # fmt: skip


def events(folder):
    """(name, step) -> all its values, of event files as TensorFlow's TFRecord format has them."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in folder.iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                found.setdefault((value.tag, event.step), []).append(
                    value.simple_value if kind == "simple_value" else (value.image.width, value.image.height)
                )
            place += 12 + length + 4
    return found


def points(live):
    rows = [json.loads(line) for line in (live / "log.jsonl").read_text().splitlines()]
    return {(name, row["step"]): [value] for row in rows for name, value in row.items() if name != "step"}


def test_a_resumed_run_has_each_point_once(train, tmp_path, monkeypatch):
    check = run._check

    def killed(result, *args):
        check(result, *args)
        if result.done == 4:
            raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(run, "_check", killed)
        train(**SETTINGS)
    train(**SETTINGS)
    found, wanted = events(tmp_path / "out/tensorboard"), points(tmp_path / "out/live")
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
    assert found == {("train/loss", 3): [0.5], ("train/loss", 4): [0.25], ("previews", 4): [(6, 4)]}
