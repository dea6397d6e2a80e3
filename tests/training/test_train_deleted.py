"""The store is deleted while a training works, goes on from a state, or ends: its outs are those of an undisturbed run.
On the stub of the UNet, before each of some of the things that it does with the store."""

import shutil

from pipeline.device import Device

import mindspore as ms
import numpy as np
import pytest

from pipeline.stage import StageError
from pipeline.training import run, state
from pipeline.training.stored import Reach
from tests import deletions
from tests.training.test_train import stubbed, train, workspace
from tests.training.training_samples import share_graphs

__all__ = ["stubbed", "train", "workspace"]  # fixtures
SETTINGS = {"train.ema": True, "train.checkpointing_steps": 1, "train.validation_share": 0.2, "train.save_interval": 1}
MOMENTS = 3  # each is a run that compiles what it has not read before


@pytest.mark.parametrize("resumed", [False, True])
def test_the_store_may_be_deleted_while_a_training_runs(train, graphs, tmp_path, monkeypatch, resumed):
    check = run._check

    def stop_after_two(result, *args):
        check(result, *args)
        if result.done == 3:
            raise StageError("stopped")

    def prepare():
        for folder in ("store", "out"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        shutil.copytree(tmp_path / "before", tmp_path / "store", symlinks=True)

    outcomes = []
    if resumed:
        with monkeypatch.context() as patch, pytest.raises(StageError, match="stopped"):
            patch.setattr(run, "_check", stop_after_two)
            train(**SETTINGS)
        (tmp_path / "store").rename(tmp_path / "before")
    else:
        share_graphs(tmp_path / "before", graphs)
    prepare()
    count = deletions.run(lambda: outcomes.append(train(**SETTINGS)))
    # a resumed run reads its state among the first events
    for moment in sorted({number * (40 if resumed else count) // MOMENTS for number in range(MOMENTS)} | {count - 2}):
        prepare()
        deletions.run(lambda: outcomes.append(train(**SETTINGS)), at=moment)
        found, wanted = outcomes.pop(), outcomes[0]
        assert found.rows == wanted.rows, f"deleted before event {moment} of {count}"
        assert found.weights.keys() == wanted.weights.keys() and found.ema.keys() == wanted.ema.keys()
        assert found.between.keys() == wanted.between.keys() == {f"step-{step:08d}" for step in range(1, 5)}
        for name, value in (wanted.weights | wanted.ema | flat(wanted.between)).items():
            other = (found.weights | found.ema | flat(found.between))[name]
            assert (other == value).all(), f"deleted before event {moment} of {count}: {name}"


def flat(files: dict[str, dict]) -> dict:
    return {f"{file} {name}": value for file, values in files.items() for name, value in values.items()}


def slots(value: float) -> list[state.Slot]:
    """A weight, and the first half of a moment that is cut in two."""
    weight, moment = (ms.Parameter(ms.Tensor(np.full(4, value, np.float32)), name) for name in ("weight", "moment"))
    return [state.Slot(weight), state.Slot(moment, 0, 2)]


def values(of: list[state.Slot]) -> set[float]:
    return {float(value) for slot in of for value in slot.parameter.asnumpy()}


def test_a_state_is_saved_and_resumed_though_the_store_is_deleted_at_any_moment(tmp_path, monkeypatch):
    """Whole, or not at all; and then the run begins with fresh weights."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    (tmp_path / "live").mkdir()
    (tmp_path / "live/log").write_text("curves")
    device, states = Device("CPU"), state.States("name", {"seed": 0}, Reach(9, 9))

    def save():
        states.open()
        moment = ms.Parameter(ms.Tensor(np.full(4, 5, np.float32)), "moment")
        other = state.States("name", {"seed": 0}, Reach(9, 9))
        states.save(3, slots(5), {"pending": None}, tmp_path / "live", 1, 0, lambda: None)
        other.save(3, [state.Slot(moment, 1, 2)], {"pending": None}, tmp_path / "live", 1, 1, lambda: None)
        states.wait()
        other.wait()

    def resume() -> tuple[dict, list[state.Slot]]:
        while True:
            fresh = slots(1)
            facts = states.resume(fresh, tmp_path / "resumed", device)
            if facts is not None:
                return facts, fresh

    steps = []
    for work in ("save", "resume"):
        moment = count = 0
        while moment <= count:
            shutil.rmtree(tmp_path / "store", ignore_errors=True)
            shutil.rmtree(tmp_path / "resumed", ignore_errors=True)
            if work == "save":
                count = deletions.run(save, at=moment)
                facts, found = resume()
            else:
                save()
                results = []
                count = deletions.run(lambda: results.append(resume()), at=moment)
                facts, found = results[0]
            assert values(found) == ({5} if facts["step"] else {1}), (work, moment)
            assert not facts["step"] or (tmp_path / "resumed/log").read_text() == "curves"
            steps.append((work, facts["step"]))
            moment += 1
    assert {("save", 0), ("save", 3), ("resume", 0), ("resume", 3)} == set(steps)
