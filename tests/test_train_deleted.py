"""The store is deleted while a training works, goes on from a state, or ends: its outs are those of an undisturbed run.
On the stub of the UNet, before each of some of the things that it does with the store."""

import shutil

import pytest

from pipeline.stage import StageError
from pipeline.training import run
from tests import deletions
from tests.test_train import stubbed, train, workspace

__all__ = ["stubbed", "train", "workspace"]  # fixtures
SETTINGS = {"train.ema": True, "train.checkpointing_steps": 1, "train.validation_share": 0.2}
MOMENTS = 5  # each is a run with compilation


@pytest.mark.parametrize("resumed", [False, True])
def test_the_store_may_be_deleted_while_a_training_runs(train, tmp_path, monkeypatch, resumed):
    check = run._check

    def stop_after_two(result, *args):
        check(result, *args)
        if result.done == 3:
            raise StageError("stopped")

    def prepare():
        for folder in ("store", "out"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        shutil.copytree(tmp_path / "before", tmp_path / "store")

    outcomes = []
    if resumed:
        with monkeypatch.context() as patch, pytest.raises(StageError, match="stopped"):
            patch.setattr(run, "_check", stop_after_two)
            train(**SETTINGS)
        (tmp_path / "store").rename(tmp_path / "before")
    else:
        (tmp_path / "before").mkdir()
    prepare()
    count = deletions.run(lambda: outcomes.append(train(**SETTINGS)))
    # a resumed run reads its state among the first events
    for moment in sorted({number * (40 if resumed else count) // MOMENTS for number in range(MOMENTS)} | {count - 2}):
        prepare()
        deletions.run(lambda: outcomes.append(train(**SETTINGS)), at=moment)
        found, wanted = outcomes.pop(), outcomes[0]
        assert found.rows == wanted.rows, f"deleted before event {moment} of {count}"
        assert found.weights.keys() == wanted.weights.keys() and found.ema.keys() == wanted.ema.keys()
        for name, value in (wanted.weights | wanted.ema).items():
            other = (found.weights | found.ema)[name]
            assert (other == value).all(), f"deleted before event {moment} of {count}: {name}"
