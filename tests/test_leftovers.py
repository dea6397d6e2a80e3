"""pipeline/leftovers.py: what gc lists and frees beside the caches' rows."""

import json
import os
import re
import shutil
import time

import pytest

from pipeline import leftovers, locks, store
from pipeline.cache import __main__ as tools
from tests import deletions

DAY = 86400


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


def write(place: str, size: int, days: float, **description) -> None:
    path = store.root() / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    if description:
        (path.parents[len(path.relative_to(store.root()).parts) - 3] / "run.json").write_text(json.dumps(description))
    age(days)


def age(days: float) -> None:
    """Of what is younger than a second."""
    now = time.time()
    for path in sorted(store.root().rglob("*"), reverse=True):
        if path.stat().st_mtime > now - 5:
            os.utime(path, (now - days * DAY, now - days * DAY))


def fill() -> None:
    write("train/a/step-00000200/state.ckpt", 2000, 9, train={"steps": 900, "learning_rate": 1e-5, "seed": 0})
    write("train/b/step-00000300/state.ckpt", 3000, 8, train={"steps": 900, "learning_rate": 2e-5, "seed": 0})
    write("train/b/step-00000400/state.ckpt", 3000, 8)
    write("train/c/step-00000100/state.ckpt", 1000, 2, train={"steps": 900, "learning_rate": 1e-5, "seed": 1})
    write("trained/d/weights/unet.ckpt", 500, 3, train={"steps": 5})
    os.link(store.root() / "trained/d/weights/unet.ckpt", "out.ckpt")
    write("trained/e/weights/unet.ckpt", 500, 1, train={"steps": 5})
    write("compile/f/rank_0/graph.mindir", 70, 5)
    write("compile/g/rank_0/graph.mindir", 80, 4)
    write("index/h.memo", 10, 29)
    write("index/i.memo", 11, 31)
    write("times/train-1.json", 12, 31)
    write("hashes/j.json", 12, 40)
    write("train/c/.tmp-0-step-00000101/state.ckpt", 9, 2)
    write("locks/train-c", 0, 2)


def names() -> set[str]:
    return {path.relative_to(store.root()).as_posix() for path in store.root().glob("*/*")}


def test_ls_shows_each_with_its_size_step_and_settings(capsys):
    fill()
    tools.list_caches()
    said = capsys.readouterr().out
    where = store.root()
    for line in (
        f"half-done training {where}/train/c: 1.07 kB, 2 days old, step 100 of 900\n",
        f"half-done training {where}/train/b: 6.06 kB, 8 days old, step 400 of 900; from the newest one: "
        "train.learning_rate 1e-05 -> 2e-05, train.seed 1 -> 0\n",
        f"half-done training {where}/train/a: 2.06 kB, 9 days old, step 200 of 900; from the newest one: "
        "train.seed 1 -> 0\n",
        f"finished training {where}/trained/e: 523 B, 1 days old\n",
        f"compiled graphs {where}/compile/g: 80 B, 4 days old\n",
        "4 memos of pictures, files and times, 45 B\n",
    ):
        assert line in said


def test_a_kept_state_is_no_half_done_training(capsys):
    """train.keep_state leaves one; each kind has its own newest."""
    fill()
    write("train/k/step-00000600/state.ckpt", 4000, 1, train={"learning_rate": 1e-5, "seed": 0})
    write("train/k/step-00000600/kept", 0, 1)
    write("train/l/step-00000600/state.ckpt", 4000, 3, train={"learning_rate": 1e-5, "seed": 2})
    write("train/l/step-00000600/kept", 0, 3)
    tools.list_caches()
    said = capsys.readouterr().out
    assert re.search(rf"(?m)^kept state {store.root()}/train/k: 4.05 kB, 1 days old, step 600$", said)
    assert (
        f"kept state {store.root()}/train/l: 4.05 kB, 3 days old, step 600; from the newest one: train.seed 0 -> 2"
        in said
    )
    assert f"half-done training {store.root()}/train/c: 1.07 kB, 2 days old, step 100 of 900\n" in said
    with locks.lock("train-l", "trains the same"):
        assert {item.path.name for item in leftovers.find() if item.in_use} == {"l"}
    tools.collect_garbage(1)
    assert {name for name in names() if name.startswith("train/")} == {"train/c", "train/k"}
    tools.collect_garbage(0)
    assert not {name for name in names() if name.startswith("train/")}


def test_gc_frees_all_but_the_newest_of_each_kind(capsys):
    fill()
    before = names()
    tools.collect_garbage(1, dry=True)
    said = capsys.readouterr().out
    assert names() == before and said.count("would remove") == 6
    tools.collect_garbage(1)
    assert names() == {"train/c", "trained/e", "compile/g", "index/h.memo"}
    done = capsys.readouterr().out
    assert [line.removeprefix("removed") for line in done.splitlines() if "half-written" not in line] == [
        line.removeprefix("would remove") for line in said.splitlines()
    ]
    assert "removed half-done training" in done and "train.learning_rate 1e-05 -> 2e-05" in done
    assert "removed 9 B that killed processes left half-written" in done
    assert "removed 3 memos of 35 B" in done and "500 B of that is still in outs" in done


def test_gc_leaves_what_a_process_works_on():
    fill()
    with locks.lock("train-a", "trains the same"):
        assert {item.path.name for item in leftovers.find() if item.in_use} == {"a"}
        tools.collect_garbage(0)
        assert {name for name in names() if not name.startswith("locks/")} == {"train/a", "index/h.memo"}
    tools.collect_garbage(0)
    assert names() == {"index/h.memo"}


def test_the_store_may_be_deleted_at_every_moment():
    moment = count = 0
    while moment <= count:
        fill()
        count = deletions.run(lambda: tools.collect_garbage(1), at=moment)
        shutil.rmtree(store.root(), ignore_errors=True)
        os.unlink("out.ckpt")
        moment += 3
    assert moment > 50
