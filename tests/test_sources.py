import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.captions import CaptionError
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from tests.data_sets import jsonl, picture, write_folder, write_parquet, write_tar

A, B, C = picture(1), picture(2), picture(3)


def listed(source) -> dict[str, list]:
    """Captions by path, from all parts; checks that paths can be read in another process's copy of the source."""
    found, copy = {}, pickle.loads(pickle.dumps(source))
    for part in source.parts():
        paths = part.paths.to_pylist()
        assert part.stamps.shape == (len(paths), 3)
        assert len(set(paths)) == len(paths)
        for path in paths:
            found[path] = []
            assert copy.read(path) == source.read(path)
        for row, text, text_2 in zip(part.caption_rows, part.texts.to_pylist(), part.texts_2.to_pylist()):
            found[paths[row]].append((text, text_2))
    return {path: sorted(captions, key=str) for path, captions in found.items()}


def others(source) -> list[str]:
    return [name for part in source.parts() for name in part.others]


# --- folders


def test_imagefolder(tmp_path):
    lines = jsonl(
        {"file_name": "a.png", "text": ["one", "two"]},
        {"file_name": "below/b.PNG", "text": "three", "text_2": "drei"},
        {"file_name": "./a.png", "text": "four"},
    )
    write_folder(tmp_path, {"a.png": A, "below/b.PNG": B, "c.webp": C, "metadata.jsonl": lines})
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "a.png": [("four", None), ("one", None), ("two", None)],
        "below/b.PNG": [("three", "drei")],
        "c.webp": [],
    }
    assert source.read("below/b.PNG") == B and others(source) == []


def test_metadata_in_sub_folders_is_relative_to_them(tmp_path):
    csv = "file_name,text\nb.png,in below\n"
    lines = jsonl({"file_name": "below/b.png", "text": "from above"})
    write_folder(tmp_path, {"b.png": A, "below/b.png": B, "below/metadata.csv": csv, "metadata.jsonl": lines})
    assert listed(open_source(str(tmp_path))) == {
        "b.png": [],
        "below/b.png": [("from above", None), ("in below", None)],
    }


def test_kohya(tmp_path):
    files = {
        "a.png": A,
        "a.txt": "one\n\n two \n",
        "d/b.jpg": B,
        "d/b.caption": "three",
        "d/b.txt": "\ufefffour",
        "c.png": C,
        "c.txt": " \n",
    }
    write_folder(tmp_path, files | {"my.dog.png": A, "my.dog.txt": "five"})
    assert listed(open_source(str(tmp_path))) == {
        "a.png": [("one", None), ("two", None)],
        "c.png": [],
        "d/b.jpg": [("four", None), ("three", None)],
        "my.dog.png": [("five", None)],
    }


def test_other_files_are_named_and_hidden_ones_are_not(tmp_path):
    files = {"a.png": A, "readme.md": "", "notes.txt": "no picture", "d/x.heic": ""}
    write_folder(tmp_path, files | {".a.png": A, ".cache/b.png": B, "._a.png": "", ".gitignore": "a.png"})
    source = open_source(str(tmp_path))
    assert list(listed(source)) == ["a.png"]
    assert others(source) == ["d/x.heic", "notes.txt", "readme.md"]


def test_captions_for_absent_pictures(tmp_path):
    rows = [{"file_name": f"{name}.png", "text": "x"} for name in "abcdefghij"]
    write_folder(tmp_path, {"a.png": A, "metadata.jsonl": jsonl(*rows)})
    with pytest.raises(
        SourceError,
        match=r"metadata.jsonl has captions for 9 pictures .*: b.png, c.png, d.png, e.png, f.png and 4 more",
    ):
        listed(open_source(str(tmp_path)))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "below/../../outside.png", "a.png\0"])
def test_metadata_cannot_leave_its_folder(tmp_path, name):
    write_folder(
        tmp_path, {"outside.png": A, "data/a.png": A, "data/metadata.jsonl": jsonl({"file_name": name, "text": "x"})}
    )
    with pytest.raises(SourceError, match="metadata.jsonl:1: .* is not a path inside the folder"):
        listed(open_source(str(tmp_path / "data")))


def test_read_cannot_leave_the_folder(tmp_path):
    write_folder(tmp_path, {"outside.png": A, "data/a.png": A})
    source = open_source(str(tmp_path / "data"))
    for path in ("../outside.png", str(tmp_path / "outside.png"), "x/../../outside.png"):
        with pytest.raises(SourceError, match="not a path inside"):
            source.read(path)


@pytest.mark.parametrize("name", ["b.png", "a.txt", "metadata.jsonl"])
def test_links_that_leave_the_folder_are_named(tmp_path, name):
    write_folder(tmp_path, {"outside": "x", "data/a.png": A})
    (tmp_path / "data" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(SourceError, match=rf"data/{name} is a link to .*/outside, outside its folder"):
        listed(open_source(str(tmp_path / "data")))


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path):
    write_folder(tmp_path, {"data/a.png": A, "data/d/a.txt": "x"})
    (tmp_path / "data/b.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data/d")
    source = open_source(str(tmp_path / "link"))
    assert listed(source) == {"a.png": [], "b.png": []}
    assert source.read("b.png") == A


def test_broken_links_and_pipes_are_named(tmp_path):
    write_folder(tmp_path, {"a.png": A})
    (tmp_path / "b.png").symlink_to("absent.png")
    with pytest.raises(SourceError, match="b.png is neither a file nor a folder"):
        listed(open_source(str(tmp_path)))
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(SourceError, match="b.png is neither a file nor a folder"):
        listed(open_source(str(tmp_path)))


def test_names_that_are_no_text(tmp_path):
    write_folder(tmp_path, {"a.png": A})
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(A)
    with pytest.raises(SourceError, match=r"the file name b'caf\\xe9.png' is not UTF-8"):
        listed(open_source(str(tmp_path)))


def test_odd_names(tmp_path):
    names = ["a b.png", "größe 大.png", "x!y.tar!z.png", "p#1.png", "new\nline.png", "-.png", "~.png", "C:\\x.png"]
    write_folder(tmp_path, {name: A for name in names})
    assert sorted(listed(open_source(str(tmp_path)))) == sorted(names)


# --- tars


def test_webdataset(tmp_path):
    members = {
        "000.jpg": A,
        "000.txt": "one\ntwo\n",
        "000.json": '{"caption": "three", "text_2": "drei"}',
        "d/001.png": B,
        "d/001.json": '{"text": ["four", "five"]}',
        "002.webp": C,
        "002.cls": "7",
        "000.seg.png": B,
        "./003.png": C,
        "orphan.txt": "x",
        ".hidden.png": A,
    }
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "deep" / "b!.tar", {"000.jpg": C})
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "a.tar!./003.png": [],
        "a.tar!000.jpg": [("one\ntwo", None), ("three", "drei")],
        "a.tar!002.webp": [],
        "a.tar!d/001.png": [("five", None), ("four", None)],
        "deep/b!.tar!000.jpg": [],
    }
    assert (source.read("a.tar!000.jpg"), source.read("deep/b!.tar!000.jpg")) == (A, C)
    assert [os.path.basename(name) for name in others(source)] == [
        "a.tar!000.seg.png",
        "a.tar!002.cls",
        "a.tar!orphan.txt",
    ]
    assert listed(open_source(str(tmp_path / "deep/b!.tar"))) == {"b!.tar!000.jpg": []}


def test_long_names_and_many_threads(tmp_path):
    """Names over 100 bytes stand in further blocks of the tar."""
    pictures = {f"{'long' * 60}/{'ü' * 50}{number}.png": picture(number) for number in range(20)}
    source = open_source(str(write_tar(tmp_path / "a.tar", pictures)))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(source.read, [f"a.tar!{name}" for name in pictures] * 5))
    assert read == list(pictures.values()) * 5


def test_members_that_are_not_files_are_not_read(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, target in (
            ("l.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("h.png", tarfile.LNKTYPE, "../x"),
            ("d.png", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        member = tarfile.TarInfo("../../up.png")
        member.size = len(A)
        tar.addfile(member, io.BytesIO(A))
    source = open_source(str(tmp_path / "a.tar"))
    assert listed(source) == {"a.tar!../../up.png": []}  # a name, not a place: nothing is unpacked
    with pytest.raises(SourceError, match="no member 'l.png'"):
        source.read("a.tar!l.png")


def test_a_tar_that_changes_is_read_anew(tmp_path):
    source = open_source(str(write_tar(tmp_path / "a.tar", {"0.png": A, "1.png": B})))
    assert source.read("a.tar!1.png") == B
    write_tar(tmp_path / "a.tar", {"0.png": C + b"more", "1.png": A})
    assert source.read("a.tar!1.png") == A


@pytest.mark.parametrize("length", [700, 5000, -1])
def test_truncated_tars(tmp_path, length):
    file = write_tar(tmp_path / "a.tar", {"0.png": picture(1, 100, 100), "1.png": B})
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(data[: length if length > 0 else len(data) - 50])
    with pytest.raises(SourceError, match="a.tar .*(truncated|not a whole, uncompressed tar)"):
        listed(open_source(str(file)))


def test_compressed_tars(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz"):
        pass
    with pytest.raises(SourceError, match="not a whole, uncompressed tar"):
        listed(open_source(str(tmp_path / "a.tar")))


# --- Parquet


def test_parquet(tmp_path):
    pictures = [A, None, B, C, A]
    structs = [{"bytes": data, "path": "x.png"} for data in pictures[:4]] + [None]
    texts = ["one", None, "", "two", "three"]
    write_parquet(
        tmp_path / "train-0.parquet", {"image": structs, "text": texts, "text_2": [None, None, None, "zwei", "x"]}
    )
    write_parquet(tmp_path / "d/train-1.parquet", {"label": [1, 2], "text": [["a", "b"], []], "image": [A, B]})
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "d/train-1.parquet#0": [("a", None), ("b", None)],
        "d/train-1.parquet#1": [],
        "train-0.parquet#0": [("one", None)],
        "train-0.parquet#1": [],
        "train-0.parquet#2": [],
        "train-0.parquet#3": [("two", "zwei")],
        "train-0.parquet#4": [("three", "x")],
    }
    assert [source.read(f"train-0.parquet#{row}") for row in range(5)] == [A, b"", B, C, b""]
    with pytest.raises(SourceError, match="has 5 rows, no row 5"):
        source.read("train-0.parquet#5")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"picture": [A], "text": ["x"]}, "has the columns picture, text; wanted image and text"),
        ({"image": ["a.png"], "text": ["x"]}, "the column image is string; wanted"),
        ({"image": [{"path": "a.png"}], "text": ["x"]}, "the column image is struct<path: string>; wanted"),
    ],
)
def test_other_columns(tmp_path, columns, message):
    with pytest.raises(SourceError, match=message):
        listed(open_source(str(write_parquet(tmp_path / "a.parquet", columns))))


def test_captions_of_another_type(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"image": [A, B], "text": pa.array([3, 4])})
    with pytest.raises(CaptionError, match="a.parquet#0: found text 3"):
        listed(open_source(str(tmp_path / "a.parquet")))


def test_parquet_with_a_broken_page(tmp_path):
    pictures = [picture(number, 100, 100) for number in range(4)]
    file = write_parquet(tmp_path / "a.parquet", {"image": pictures, "text": ["x"] * 4})
    data = bytearray(file.read_bytes())
    data[4:40] = bytes(36)  # the first page's header
    file.write_bytes(data)
    source = open_source(str(file))
    with pytest.raises(SourceError, match="a.parquet is not a whole Parquet file"):
        source.read("a.parquet#0")


def test_truncated_parquet(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {"image": [A], "text": ["x"]})
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(SourceError, match="not a whole Parquet file"):
        listed(open_source(str(file)))


def test_large_parquet_types(tmp_path):
    pictures, texts = pa.array([A, B, C], pa.large_binary()), pa.array(["x", "y", "z"], pa.large_string())
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": pictures, "text": texts})))
    assert listed(source)["a.parquet#2"] == [("z", None)] and source.read("a.parquet#2") == C


# --- which is which


def test_unusable_places(tmp_path):
    with pytest.raises(SourceError, match="there is no such folder or file"):
        open_source(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="holds no pictures, no .tar and no .parquet"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="wanted a folder, a .tar"):
        open_source(str(write_folder(tmp_path, {"a.zip": "x"}) / "a.zip"))
    write_tar(tmp_path / "a.tar", {"0.png": A})
    write_parquet(tmp_path / "a.parquet", {"image": [A], "text": ["x"]})
    with pytest.raises(SourceError, match=r"holds tars \(a.tar\) and Parquet files \(a.parquet\)"):
        open_source(str(tmp_path))
    write_folder(tmp_path, {"d/a.png": A})
    with pytest.raises(
        SourceError, match="holds pictures and a.parquet; give a folder with pictures alone or without any"
    ):
        listed(open_source(str(tmp_path)))


def test_stamps_show_every_change(tmp_path):
    """Also of a file that is replaced by one of the same size and time, as unpacking an archive does."""
    write_folder(tmp_path, {"a.png": A})

    def stamp():
        return next(open_source(str(tmp_path)).parts()).stamps

    before = stamp()
    assert np.array_equal(stamp(), before)
    times = (before[0, 1], before[0, 1])
    (tmp_path / "a.png").write_bytes(bytes(len(A)))
    os.utime(tmp_path / "a.png", ns=times)
    assert stamp()[0, 0] == before[0, 0] and stamp()[0, 1] == before[0, 1] and not np.array_equal(stamp(), before)
