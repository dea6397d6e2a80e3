"""pipeline/store.py"""

import shutil
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


def test_what_is_kept_is_kept_though_the_store_is_deleted_meanwhile(tmp_path):
    path, attempts = store.root() / "a/b", []

    def write(temporary: Path) -> None:
        attempts.append(temporary)
        temporary.mkdir()
        (temporary / "file").touch()
        if len(attempts) < 3:
            shutil.rmtree(store.root())

    store.keep(path, write)
    assert names(path) == ["file"] and len(attempts) == 3 and names(path.parent) == ["b"]


def test_two_processes_may_keep_the_same_folder_at_once(tmp_path):
    path, attempts = store.root() / "a", []

    def write(temporary: Path) -> None:
        attempts.append(temporary)
        temporary.mkdir()
        (temporary / "file").touch()

    replace = store.os.replace

    def late(source, target):
        if len(attempts) == 1:  # another process is quicker, after this one has looked
            path.mkdir()
            (path / "file").touch()
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.os, "replace", late)
        store.keep(path, write)
    assert names(path) == ["file"] and len(attempts) == 2 and names(store.root()) == ["a"]


def test_another_error_is_not_tried_again(tmp_path):
    attempts = []

    def write(temporary: Path) -> None:
        attempts.append(temporary)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        store.keep(store.root() / "a", write)
    assert len(attempts) == 1


def test_a_scratch_file_has_no_name_and_outlives_the_store(tmp_path):
    with store.scratch() as file:
        file.write(b"x")
        assert names(store.root()) == []
        shutil.rmtree(store.root())
        file.seek(0)
        assert file.read() == b"x"


def test_a_watched_folder_that_is_moved_or_deleted_is_another(tmp_path):
    folder = store.root() / "a"
    for go in (lambda: shutil.rmtree(store.root()), lambda: store.root().rename(tmp_path / "elsewhere")):
        with store.watched(folder) as there:
            (folder / "file").touch()
            assert there()
            go()
            assert not there()
            folder.mkdir(parents=True)
            assert not there()


def test_a_home_folder_is_meant_by_its_sign(tmp_path, monkeypatch):
    """Quoted in a shell, ~ comes as it is; some libraries take it for the home folder and some for a name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIPELINE_STORE", "~/store")
    assert store.root() == tmp_path / "store" and (tmp_path / "store").is_dir()


def test_a_store_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"the store .*/file cannot be made: File exists; PIPELINE_STORE says where it is"
    ):
        store.root()


def test_a_file_never_replaces_a_folder(tmp_path):
    """As `python -m pipeline plan --plot FOLDER` would."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/precious").write_text("x")
    with pytest.raises(IsADirectoryError, match="is a folder"), store.atomic(tmp_path / "folder") as path:
        path.write_text("page")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "precious"]
