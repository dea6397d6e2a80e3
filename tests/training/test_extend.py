"""Longer runs go on from shorter ones' states and end as if they had been of their length from the start. On the stub of
the UNet."""

import json
from dataclasses import replace

import pytest

from pipeline import store
from pipeline.training import run
from tests.training.test_train import stubbed, train, workspace

__all__ = ["stubbed", "train", "workspace"]  # fixtures
SETTINGS = {
    "train.lr_scheduler": "constant_with_warmup",
    "train.lr_warmup_steps": 2,
    "train.ema": True,
    "train.validation_share": 0.2,
    "train.validation_interval": 3,
    "train.log_interval": 3,
    "train.checkpointing_steps": 2,
    "train.save_interval": 2,
    "train.save_limit": 2,
    "train.keep_best": True,
}


def states() -> list[str]:
    return sorted(path.name for path in (store.root() / "train").glob("*/*-*"))


def forget() -> None:
    """All but the graphs, so that a run begins anew."""
    for name in ("train", "trained"):
        store.remove(store.root() / name)


def steps_taken(monkeypatch, call):
    """-> (the steps that `call` took, what it gives)"""
    taken, check = [], run._check
    with monkeypatch.context() as patch:
        patch.setattr(run, "_check", lambda result, *args: (taken.append(result.done), check(result, *args)))
        found = call()
    return taken, found


def test_a_longer_run_goes_on_and_ends_in_the_same_bits(train, monkeypatch):
    """Neither the shorter run's last validation, nor its last point, nor its best weights leave a trace."""
    long = SETTINGS | {"train.steps": 8}
    taken, whole = steps_taken(monkeypatch, lambda: train(**long))
    assert taken == list(range(1, 9)) and not states()
    forget()
    short = train(**SETTINGS | {"train.steps": 4, "train.keep_state": True})
    assert {row["step"] for row in short.rows if "validation/loss" in row} == {0, 3, 4}
    assert "step-00000004" in states()
    taken, extended = steps_taken(monkeypatch, lambda: train(**long))
    assert taken == [5, 6, 7, 8]
    assert extended.rows == whole.rows and extended == replace(whole, saved=extended.saved, kept=extended.kept)
    assert not states()


PLAIN = {"train.lr_scheduler": "constant", "train.checkpointing_steps": 2}  # few graphs


def test_a_run_without_a_kept_state_begins_anew(train, monkeypatch):
    train(**PLAIN | {"train.steps": 3})
    assert steps_taken(monkeypatch, lambda: train(**PLAIN | {"train.steps": 4}))[0] == [1, 2, 3, 4]


def test_a_shorter_run_takes_no_later_state_and_leaves_it(train, monkeypatch):
    train(**PLAIN | {"train.steps": 5, "train.keep_state": True})
    taken, _ = steps_taken(monkeypatch, lambda: train(**PLAIN | {"train.steps": 4}))
    assert taken == [1, 2, 3, 4] and states() == ["step-00000005"]


def test_a_run_that_was_finished_takes_no_step(train, monkeypatch):
    """As when its outs are gone and its state is not; and an epoch more goes on from there."""
    settings = PLAIN | {"train.steps": None, "train.keep_state": True, "train.log_interval": 3}
    whole = train(**settings | {"train.epochs": 1})
    store.remove(store.root() / "trained")
    taken, again = steps_taken(monkeypatch, lambda: train(**settings | {"train.epochs": 1}))
    assert taken == [] and again.rows == whole.rows and again == replace(whole, saved=[], kept=again.kept)
    end = whole.rows[-1]["step"]
    taken, _ = steps_taken(monkeypatch, lambda: train(**settings | {"train.epochs": 2}))
    assert taken == list(range(end + 1, 2 * end + 1))


def test_wsd_goes_on_from_where_its_decay_began(train, monkeypatch):
    """Killed in its decay a run goes on there; a longer one begins before, and both end in an unbroken run's bits."""
    settings = PLAIN | {"train.lr_scheduler": "wsd", "train.lr_decay_steps": 3, "train.log_interval": 2}
    _, whole = steps_taken(monkeypatch, lambda: train(**settings | {"train.steps": 8}))
    forget()
    short = settings | {"train.steps": 6, "train.keep_state": True, "train.checkpointing_steps": 5}
    check = run._check
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(run, "_check", lambda result, *args: kill(result, check, args, 6))
        train(**short)
    assert states() == ["step-00000003", "step-00000005-of-00000006"]
    assert steps_taken(monkeypatch, lambda: train(**short))[0] == [6] and states() == ["step-00000003"]
    taken, extended = steps_taken(monkeypatch, lambda: train(**settings | {"train.steps": 8}))
    assert taken == [4, 5, 6, 7, 8] and extended == replace(whole, saved=extended.saved, kept=extended.kept)


def kill(result, check, args, step: int) -> None:
    """In the place of run._check."""
    check(result, *args)
    if result.done == step:
        args[-1].wait()  # its states are written
        raise OSError("killed")


def test_a_rate_that_depends_on_the_length_begins_anew(train, monkeypatch):
    train(**PLAIN | {"train.steps": 3, "train.lr_scheduler": "linear", "train.checkpointing_steps": 1})
    settings = PLAIN | {"train.steps": 4, "train.lr_scheduler": "linear"}
    assert steps_taken(monkeypatch, lambda: train(**settings))[0] == [1, 2, 3, 4]


def test_patience_stops_at_the_same_step_after_a_resume(train, monkeypatch, tmp_path):
    """Killed between the validation that brought nothing and the one that ends the run."""
    settings = {
        "train.steps": 9, "train.learning_rate": 0.5, "train.validation_share": 0.2, "train.validation_interval": 1,
        "train.patience": 2, "train.keep_best": True, "train.checkpointing_steps": 1,
    }  # fmt: skip
    taken, whole = steps_taken(monkeypatch, lambda: train(**settings))
    losses = [row["validation/loss"] for row in whole.rows if "validation/loss" in row][1:]
    best = losses.index(min(losses)) + 1
    assert len(taken) == best + 2 < 9 and whole.rows[-1]["step"] == best + 2
    metrics = json.loads((tmp_path / "out/live/metrics.json").read_text())
    assert metrics["train"]["stopped_early"] == 1 and metrics["validation"]["best_step"] == best
    assert set(whole.between) == {"unet_best"}
    facts = json.loads((tmp_path / "out/weights/run.json").read_text())
    assert (facts["steps"], facts["best_step"]) == (best + 2, best)
    forget()

    check = run._check
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(run, "_check", lambda result, *args: kill(result, check, args, best + 2))
        train(**settings)
    assert states() == [f"step-{best + 1:08d}", f"weights-{best:08d}.ckpt"]
    taken, resumed = steps_taken(monkeypatch, lambda: train(**settings))
    assert taken == [best + 2] and resumed.rows == whole.rows
    assert resumed == replace(whole, saved=resumed.saved, kept=resumed.kept)


def test_patience_averages_and_a_kept_state_go_together(train, monkeypatch):
    """A longer run counts on from the validations before, and stops where it would have stopped; and so does one that
    is longer still."""
    settings = {
        "train.steps": 9, "train.learning_rate": 0.5, "train.validation_share": 0.2, "train.validation_interval": 1,
        "train.patience": 2, "train.keep_best": True, "train.keep_state": True, "train.checkpointing_steps": 2,
        "train.ema": True, "train.ema_decay": 0.5,
    }  # fmt: skip
    taken, whole = steps_taken(monkeypatch, lambda: train(**settings))
    losses = [row["validation/ema_loss"] for row in whole.rows if "validation/ema_loss" in row][1:]
    best = losses.index(min(losses)) + 1
    assert taken == list(range(1, best + 3)) and len(taken) < 9
    forget()
    train(**settings | {"train.steps": best + 1})
    taken, extended = steps_taken(monkeypatch, lambda: train(**settings))
    assert taken == [best + 2] and extended == replace(whole, saved=extended.saved, kept=extended.kept)
    taken, longer = steps_taken(monkeypatch, lambda: train(**settings | {"train.steps": 12}))
    assert taken == [best + 2] and longer == replace(whole, saved=longer.saved, kept=longer.kept)
