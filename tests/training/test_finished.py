"""pipeline/training/finished.py: outs of finished trainings in the store. Needs no MindSpore."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline import store
from pipeline.stage import StageError
from pipeline.training import finished, stored
from pipeline.training.key import Training
from pipeline.training.stored import Reach, state_name
from stages import train as stage
from tests import deletions
from tests.training.training_samples import params

REACH = Reach(9, 9)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


def training(seed: int, batch_size: int = 4) -> Training:
    return Training({"train": {"seed": seed}}, {"batch_size": batch_size}, REACH)


def make(out: Path, text: str) -> Path:
    """A training's outs."""
    (out / "weights").mkdir(parents=True)
    (out / "live/plots").mkdir(parents=True)
    (out / "weights/unet.ckpt").write_text(text)
    (out / "live/plots/loss.tsv").write_text(f"{text} loss")
    return out


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_outs_of_the_very_training_are_taken(tmp_path):
    finished.keep(training(0), make(tmp_path / "out", "a"))
    half_done = store.root() / "train" / training(0).name / state_name(7, REACH)
    half_done.mkdir(parents=True)
    assert not finished.take(training(1), tmp_path / "other")
    assert not finished.take(training(0, batch_size=2), tmp_path / "other") and half_done.exists()
    make(tmp_path / "other", "left by another run")
    assert finished.there(training(0)) and finished.take(training(0), tmp_path / "other")
    assert files(tmp_path / "other") == files(tmp_path / "out") and not half_done.exists()
    assert (tmp_path / "other/weights/unet.ckpt").stat().st_nlink == 3


def test_the_state_that_a_longer_run_goes_on_from_stays(tmp_path, caplog):
    finished.keep(training(0), make(tmp_path / "out", "a"))
    states = store.root() / "train" / training(0).name
    for step in (6, 9):
        (states / state_name(step, REACH)).mkdir(parents=True)
    assert finished.take(training(0), tmp_path / "other", keep_state=True)
    assert [path.name for path in states.iterdir()] == ["step-00000009"] and "begins anew" not in caplog.text
    assert stored.is_kept(states)
    (states / state_name(12, Reach(20, 20))).mkdir()  # a longer run was killed after it
    assert not stored.is_kept(states)
    shutil.rmtree(states / state_name(12, Reach(20, 20)))
    assert finished.take(training(0), tmp_path / "other") and not states.exists()
    assert finished.take(training(0), tmp_path / "other", keep_state=True) and "begins anew" in caplog.text


def test_an_adapter_with_another_date_in_it_is_another_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outs/convert").mkdir(parents=True)
    (tmp_path / "outs/convert/sources.json").write_text('{"base": {}, "vae": {}}')
    names, adapted = set(), params(**{"train.adapter": "lora"})
    for epoch in ("", "1700000000", "1800000000"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
        names |= {Training({"origin": stage._origin(adapted)}, {}, REACH).exact_name}
        assert stage._origin(params()) is None  # whole weights have no date
    assert len(names) == 3
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(StageError, match="SOURCE_DATE_EPOCH is today"):  # before the training, not after
        stage._origin(adapted)


def test_what_was_edited_under_another_name_is_not_taken(tmp_path, caplog):
    out = make(tmp_path / "out", "a")
    finished.keep(training(0), out)
    (out / "weights/unet.ckpt").chmod(0o644)
    with open(out / "weights/unet.ckpt", "a") as file:
        file.write("b")
    assert not finished.there(training(0)) and not finished.take(training(0), tmp_path / "other")
    assert "unet.ckpt was edited" in caplog.text and not (tmp_path / "other").exists()


def test_the_last_used_are_kept(tmp_path):
    for seed in range(finished.KEPT):
        finished.keep(training(seed), make(tmp_path / f"{seed}", "a"))
        os.utime(store.root() / "trained" / training(seed).exact_name, (seed, seed))
    assert finished.take(training(0), tmp_path / "again")
    finished.keep(training(9), make(tmp_path / "9", "a"))
    kept = [seed for seed in (*range(finished.KEPT), 9) if finished.there(training(seed))]
    assert kept == [0, *range(2, finished.KEPT), 9]


def test_the_store_may_be_deleted_at_every_moment(tmp_path):
    out, other = make(tmp_path / "out", "a"), tmp_path / "other"
    moment = count = 0
    while moment <= count:
        count = deletions.run(lambda: finished.keep(training(0), out), at=moment)
        assert files(out) == {"weights/unet.ckpt": "a", "live/plots/loss.tsv": "a loss"}
        moment += 1
    moment = count = taken = 0
    while moment <= count:
        finished.keep(training(0), out)
        shutil.rmtree(other, ignore_errors=True)
        results = []
        count = deletions.run(lambda: results.append(finished.take(training(0), other)), at=moment)
        assert files(other) == (files(out) if results[0] else {}), moment
        taken += results[0]
        moment += 1
    assert 0 < taken < moment
