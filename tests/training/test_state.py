"""A state is written beside the training: what it holds, and what happens when it cannot be written."""

import threading
import time

import pipeline.device  # noqa: F401  (before MindSpore)
from pipeline.device import Device

import mindspore as ms
import numpy as np
import pytest

from pipeline.stage import StageError
from pipeline.training import state
from pipeline.training.stored import Reach


@pytest.fixture(autouse=True)
def _store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "live/plots").mkdir(parents=True)


def slot(value: float, **part) -> state.Slot:
    return state.Slot(ms.Parameter(ms.Tensor(np.full(4, value, np.float32)), "weight"), **part)


def save(states: state.States, slots: list[state.Slot], tmp_path, rank: int = 0) -> None:
    states.save(3, slots, {"pending": None}, tmp_path / "live", 1, rank, lambda: None)


def test_it_holds_what_was_there_when_it_was_saved(tmp_path, monkeypatch):
    (tmp_path / "live/plots/loss.tsv").write_text("1")
    write, trained = state._write, []

    def late(path, values):
        while not trained:
            pass
        write(path, values)

    monkeypatch.setattr(state, "_write", late)
    states, kept = state.States("name", {}, Reach(9, 9)), slot(1)
    save(states, [kept], tmp_path)
    kept.parameter.set_data(ms.Tensor(np.full(4, 2, np.float32)))
    (tmp_path / "live/plots/loss.tsv").write_text("2")
    assert not states.steps()
    trained.append(True)
    states.wait()
    assert states.resume([kept], tmp_path / "resumed", Device("CPU"))["step"] == 3
    np.testing.assert_array_equal(kept.parameter.asnumpy(), 1)
    assert (tmp_path / "resumed/plots/loss.tsv").read_text() == "1"


def test_what_it_could_not_be_written_for_is_raised_at_the_next_one_and_at_the_end(tmp_path, monkeypatch):
    def full(path, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "_write", full)
    states = state.States("name", {}, Reach(9, 9))
    for again in (lambda: save(states, [slot(1)], tmp_path), states.wait):
        save(states, [slot(1)], tmp_path)
        with pytest.raises(OSError, match="No space left"):
            again()
    states.wait()
    assert not states.steps()


def test_a_rank_whose_part_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SLICES_SECONDS", 0.2)
    states = state.States("name", {}, Reach(9, 9))
    save(states, [slot(1, part=0, parts=2)], tmp_path)
    with pytest.raises(StageError, match="slices-00000003/1-of-2.ckpt is not there, 0 s after .* one store"):
        states.wait()


def test_a_run_that_fails_lets_its_last_state_be_written(tmp_path, monkeypatch):
    write, begun = state._write, threading.Event()

    def slow(path, values):
        begun.set()
        time.sleep(0.3)
        write(path, values)

    monkeypatch.setattr(state, "_write", slow)
    states = state.States("name", {}, Reach(9, 9))
    save(states, [slot(1)], tmp_path)
    begun.wait(10)
    states.finish()
    assert len(states.steps()) == 1


def test_a_run_that_fails_waits_for_no_other_rank(tmp_path, caplog):
    states = state.States("name", {}, Reach(9, 9))
    save(states, [slot(1, part=0, parts=2)], tmp_path)
    states.finish()
    assert not states.steps() and "the state of step 3 is not kept" in caplog.text


def test_bfloat16_and_bytes_come_back_as_they_were(tmp_path):
    """A checkpoint of weights has no bytes, and NumPy no bfloat16."""
    draw = np.random.default_rng(0)
    values = {
        "half": ms.Tensor(draw.standard_normal((3, 5)).astype(np.float32)).astype(ms.bfloat16),
        "codes": ms.Tensor(draw.integers(0, 256, (2, 256), np.uint8)),
        "count": ms.Tensor(np.float32(7)),
    }
    slots = [state.Slot(ms.Parameter(value.copy(), name)) for name, value in values.items()]
    (tmp_path / "live/plots/loss.tsv").write_text("1")
    states = state.States("name", {}, Reach(9, 9))
    save(states, slots, tmp_path)
    states.wait()
    for kept in slots:
        kept.parameter.set_data(ms.ops.zeros(kept.parameter.shape, kept.parameter.dtype))
    assert state.States("name", {}, Reach(9, 9)).resume(slots, tmp_path / "again", Device("CPU"))["step"] == 3
    for kept in slots:
        wanted = values[kept.parameter.name]
        assert kept.parameter.dtype == wanted.dtype and kept.parameter.asnumpy().tobytes() == wanted.asnumpy().tobytes()
