"""Files that a node fetches."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.stage import StageError

pytest.importorskip("ray", reason="Ray is not installed here: pip install -r requirements-ray.txt")

from pipeline.workers import parcel  # noqa: E402


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The first node's disk, which this process does not see: files go to another place once they are listed. The
    requests of chunks are noted."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(parcel, "_CHUNK", 4)
    monkeypatch.setattr(parcel, "_asked", lambda answer: answer)
    for name in ("one.ckpt", "folder/a", "folder/inner/b", "folder/c"):
        (tmp_path / "disk" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "disk" / name).write_text(f"bytes of {name.replace('c', 'a')}")
    files = {name: parcel._files(tmp_path / "disk" / name) for name in ("one.ckpt", "folder")}
    (tmp_path / "disk").rename(tmp_path / "moved")
    places = {file.digest: tmp_path / "moved" / file.place[len(str(tmp_path / "disk")) + 1 :]
              for inner in files.values() for file in inner.values()}  # fmt: skip
    asked = []

    def chunk(digest, begin):
        asked.append(begin)
        return np.frombuffer(places[digest].read_bytes()[begin : begin + 4], np.uint8)

    handle = SimpleNamespace(chunk=SimpleNamespace(remote=chunk))
    return SimpleNamespace(parcel=parcel.Parcel(files, None, handle), asked=asked, moved=tmp_path / "moved")


def test_each_file_is_fetched_once_and_keeps_its_name(first):
    for _ in range(2):
        files, source = first.parcel.unpack()
        assert source is None
        assert files["one.ckpt"].suffix == ".ckpt" and files["one.ckpt"].read_text() == "bytes of one.akpt"
        inner = {path.relative_to(files["folder"]).as_posix() for path in files["folder"].rglob("*") if path.is_file()}
        assert inner == {"a", "inner/b", "c"}
        assert (files["folder"] / "inner/b").read_text() == "bytes of folder/inner/b"
    # a and c are the same
    assert len(first.asked) == sum(
        -(-len(f"bytes of {name}") // 4) for name in ("one.akpt", "folder/a", "folder/inner/b")
    )


def test_a_file_that_is_there_too_is_not_fetched(first):
    first.moved.rename(first.moved.parent / "disk")
    files, _ = first.parcel.unpack()
    assert not first.asked and files["folder"] == first.moved.parent / "disk/folder"
    assert files["one.ckpt"] == first.moved.parent / "disk/one.ckpt"


def test_another_content_is_not_taken(first):
    (first.moved / "one.ckpt").write_text("bytes of an edit!")
    with pytest.raises(StageError, match="one.ckpt changed while it was sent to this node"):
        first.parcel.unpack()


def test_a_damaged_file_is_fetched_again(first):
    files, _ = first.parcel.unpack()
    files["one.ckpt"].write_text("bytes of one.akp?")
    files, _ = first.parcel.unpack()
    assert files["one.ckpt"].read_text() == "bytes of one.akpt"


@pytest.mark.parametrize(("root", "sees"), [("s3://bucket/set", True), ("{here}", True), ("/of/the/first/node", False)])
def test_a_node_reads_pictures_itself_where_it_can(tmp_path, first, root, sees):
    """At a URL, or in a folder that it has; else by way of the first node."""
    source = SimpleNamespace(root=root.format(here=tmp_path), read=lambda path: b"of here", file=None)
    first.parcel.first.read = SimpleNamespace(remote=lambda path: b"by way of the first")
    _, found = parcel.Parcel({}, source, first.parcel.first).unpack()
    assert found.read("a.png") == (b"of here" if sees else b"by way of the first")
