"""pipeline/store.py"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import store


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_store_is_in_dvcs_root(tmp_path, monkeypatch):
    """In `dvc exp run --temp` that is the main repository and not the temporary copy."""
    monkeypatch.delenv("PIPELINE_STORE")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert store.root() == tmp_path / "main/.store"


def test_a_file_that_fails_half_way_is_absent(tmp_path):
    with pytest.raises(RuntimeError), store.atomic(tmp_path / "out/a") as path:
        path.write_text("half")
        raise RuntimeError
    assert names(tmp_path / "out") == []


def test_atomic_replaces_files_and_folders_whole(tmp_path):
    for content in ("1", "2"):
        with store.atomic(tmp_path / "file") as path:
            path.write_text(content)
        with store.atomic(tmp_path / "folder") as path:
            path.mkdir()
            (path / content).touch()
    assert (tmp_path / "file").read_text() == "2" and names(tmp_path / "folder") == ["2"]


def test_a_linked_file_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "a").write_text("first")
    store.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "first"
    with store.atomic(tmp_path / "b") as path:
        path.write_text("second")
    assert (tmp_path / "a").read_text() == "first"


KILLED = """
import os, sys
from pathlib import Path
from pipeline import store
with store.out(Path(sys.argv[1]) / "weights") as path:
    path.mkdir()
    (path / "part").write_bytes(b"x" * 1000)
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_of_an_out_goes(tmp_path):
    folder = tmp_path / "outs"
    subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert len(names(folder)) == 1 and "weights" not in names(folder)
    with store.out(folder / "weights") as path:
        path.mkdir()
    assert names(folder) == ["weights"]


def test_a_lock_says_who_holds_it_and_ends_with_its_process(tmp_path):
    script = (
        "import sys, time\nfrom pipeline import store\n"
        "with store.lock('k'):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(store.Busy, match=f"PID {holder.pid}"), store.lock("k"):
        pass
    with store.lock("another"):
        pass
    holder.kill()
    holder.wait()
    with store.lock("k"):
        pass
