import os
import pickle
import unicodedata

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.captions import CaptionError
from pipeline.data.folder import Folder
from pipeline.data.kinds import PICTURES
from pipeline.data.part import STAMP, SourceError
from pipeline.data.sources import open_source
from tests.data.data_sets import jsonl, picture, write_folder, write_parquet, write_tar

A, B, C = picture(1), picture(2), picture(3)


def listed(source) -> dict[str, list]:
    """Captions by path, from all parts; checks that paths can be read in another process's copy of the source."""
    found, copy = {}, pickle.loads(pickle.dumps(source))
    for part in source.parts():
        paths = part.paths.to_pylist()
        assert part.stamps.shape == (len(paths), 4)
        assert len(set(paths)) == len(paths)
        for path in paths:
            found[path] = []
            assert copy.read(path) == source.read(path)
        for row, text, text_2 in zip(part.caption_rows, part.texts.to_pylist(), part.texts_2.to_pylist()):
            found[paths[row]].append((text, text_2))
    return {path: sorted(captions, key=str) for path, captions in found.items()}


def others(source) -> list[str]:
    return [name for part in source.parts() for name in part.others]


def lost(source) -> dict[str, str]:
    """Reasons by path."""
    return {path: reason for part in source.parts() for path, reason, _ in part.lost}


def unmatched(source) -> list[tuple[str, str, str]]:
    return sorted(tuple(row) for part in source.parts() for row in part.unmatched)


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
    assert others(source) == ["readme.md"]
    assert lost(source) == {"d/x.heic": "not read: HEIC; convert it to PNG or JPEG"}
    assert unmatched(source) == [("notes.txt", "caption", "no picture of this name")]


def test_captions_for_absent_pictures(tmp_path):
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "b.png", "./b.png", "d/c.png")]
    write_folder(tmp_path, {"a.png": A, "e/metadata.csv": "file_name,text\nf.png,y\n", "metadata.jsonl": jsonl(*rows)})
    source = open_source(str(tmp_path))
    assert listed(source) == {"a.png": [("x", None)]}
    assert lost(source) == {
        "b.png": "absent: metadata.jsonl has a caption for it",
        "d/c.png": "absent: metadata.jsonl has a caption for it",
        "e/f.png": "absent: e/metadata.csv has a caption for it",
    }


@pytest.mark.parametrize("extension", sorted(PICTURES))
def test_a_picture_of_every_extension_finds_its_captions(tmp_path, extension):
    rows = jsonl({"file_name": f"a{extension}", "text": "one"})
    write_folder(tmp_path, {f"a{extension}": A, f"B{extension.upper()}": B, "B.TXT": "two", "metadata.jsonl": rows})
    source = open_source(str(tmp_path))
    assert listed(source) == {f"a{extension}": [("one", None)], f"B{extension.upper()}": [("two", None)]}
    assert not lost(source) and not unmatched(source)


def test_capitals_and_unicode_forms(tmp_path):
    """As files come from a Mac (é as two characters), from Windows (A.TXT, backslashes) and from cameras (A.JPG)."""
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    rows = [
        {"file_name": "IMG_2.jpg", "text": "three"},
        {"file_name": f"d{nfc}\\{nfc}.png", "text": "four"},
        {"file_name": f"{nfd}3.png", "text": "five"},
    ]
    files = {
        "IMG_1.JPG": A,
        "IMG_1.TXT": "one",
        f"{nfd}.jpg": B,
        f"{nfc}.txt": "two",
        "IMG_2.JPG": C,
        f"D{nfd}/{nfd.upper()}.PNG": A,
        f"{nfc}3.png": B,
        "Straße.png": C,
        "STRASSE.Caption": "six",
    }
    write_folder(tmp_path, files | {"METADATA.JSONL": jsonl(*rows)})
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "IMG_1.JPG": [("one", None)],
        f"{nfd}.jpg": [("two", None)],
        "IMG_2.JPG": [("three", None)],
        f"D{nfd}/{nfd.upper()}.PNG": [("four", None)],
        f"{nfc}3.png": [("five", None)],
        "Straße.png": [("six", None)],
    }
    assert not lost(source) and not unmatched(source) and not others(source)


def test_what_could_mean_two_files_means_none(tmp_path):
    files = {
        "a.png": A,
        "A.png": B,
        "a.txt": "one",
        "b.png": A,
        "B.png": B,
        "bB.png": C,
        "Bb.txt": "two",
        "BB.txt": "3",
    }
    rows = [{"file_name": "A.PNG", "text": "four"}, {"file_name": "b.png", "text": "five"}]
    source = open_source(str(write_folder(tmp_path, files | {"metadata.jsonl": jsonl(*rows)})))
    assert {path for path, found in listed(source).items() if found} == {"a.png", "b.png"}
    assert unmatched(source) == [(name, "caption", "no picture of this name") for name in ("BB.txt", "Bb.txt")]
    assert lost(source) == {"A.PNG": "absent: metadata.jsonl has a caption for it"}


def test_pictures_of_kinds_that_are_not_read(tmp_path):
    heic, raw = (f"not read: {kind}; convert it to PNG or JPEG" for kind in ("HEIC", "raw"))
    rows = jsonl({"file_name": "a.heic", "text": "one"}, {"file_name": "d.CR2", "text": "four"})
    files = {
        "a.heic": "",
        "b.HEIC": "",
        "b.txt": "two",
        "c.nef": "",
        "c.jpg": A,
        "c.txt": "three",
        "d.CR2": "",
        "d.jpg": B,
    }
    source = open_source(str(write_folder(tmp_path, files | {"metadata.jsonl": rows})))
    assert listed(source) == {"c.jpg": [("three", None)], "d.jpg": []}
    assert lost(source) == {"a.heic": heic, "b.HEIC": heic, "d.CR2": raw}
    assert unmatched(source) == [
        ("b.txt", "caption", "its picture is not read: b.HEIC"),
        ("c.nef", "picture", "not read, and another of this name is"),
    ]
    only = open_source(str(write_folder(tmp_path / "only", {"a.heic": ""})))
    assert listed(only) == {} and lost(only) == {"a.heic": heic}


def test_what_metadata_names_is_a_picture_whatever_its_name_ends_in(tmp_path):
    rows = jsonl({"file_name": "0001", "text": "one"}, {"file_name": "d/b.bin", "text": "two"})
    source = open_source(str(write_folder(tmp_path, {"0001": A, "d/b.bin": B, "c.bin": C, "metadata.jsonl": rows})))
    assert listed(source) == {"0001": [("one", None)], "d/b.bin": [("two", None)]}
    assert others(source) == ["c.bin"]


def test_a_text_named_by_the_whole_name_of_its_picture(tmp_path):
    """Unless another picture is named so but for its extension."""
    pictures = {name: A for name in ("a.png", "b.PNG", "c.jpg", "c.jpg.png", "d.png")}
    texts = {"a.png.txt": "a", "a.txt": "too", "b.png.caption": "b", "c.jpg.txt": "c", "d.heic.txt": "none"}
    write_folder(tmp_path, pictures | texts)
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "a.png": [("a", None), ("too", None)],
        "b.PNG": [("b", None)],
        "c.jpg": [],
        "c.jpg.png": [("c", None)],
        "d.png": [],
    }
    assert unmatched(source) == [("d.heic.txt", "caption", "no picture of this name")]


def test_a_text_file_as_one_caption(tmp_path):
    source = open_source(str(write_folder(tmp_path, {"a.png": A, "a.txt": "one\ntwo\n"})), "one")
    assert listed(source) == {"a.png": [("one\ntwo", None)]}
    assert listed(open_source(str(tmp_path), "several")) == {"a.png": [("one", None), ("two", None)]}


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


def test_links_in_the_folder_lead_anywhere(tmp_path):
    """As in a Hugging Face hub snapshot, whose files are links to ../../blobs; the folder itself may be a link too."""
    line = jsonl({"file_name": "d/b.png", "text": "two"})
    blobs = {"blobs/1": A, "blobs/2": "one", "blobs/3": B, "blobs/4": line}
    write_folder(tmp_path, blobs | {"snapshots/x/real.png": C})
    snapshot = tmp_path / "snapshots/x"
    (snapshot / "d").mkdir()
    (snapshot / "a.png").symlink_to("../../blobs/1")
    (snapshot / "a.txt").symlink_to("../../blobs/2")
    (snapshot / "d/b.png").symlink_to(tmp_path / "blobs/3")
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/4")
    (tmp_path / "link").symlink_to("snapshots/x")
    for root in (snapshot, tmp_path / "link"):
        source = open_source(str(root))
        assert listed(source) == {"a.png": [("one", None)], "d/b.png": [("two", None)], "real.png": []}
        assert (source.read("a.png"), source.read("d/b.png")) == (A, B)


@pytest.mark.parametrize("name", ["out/a.png", "out/../a.png", "/etc/passwd", "..\\outside.png"])
def test_names_in_metadata_do_not_go_through_links(tmp_path, name):
    write_folder(tmp_path, {"far/a.png": A, "outside.png": A, "data/b.png": B})
    (tmp_path / "data/out").symlink_to(tmp_path / "far")
    (tmp_path / "data/metadata.jsonl").write_text(jsonl({"file_name": name, "text": "x"}))
    source = open_source(str(tmp_path / "data"))
    if name in ("out/a.png", "..\\outside.png"):
        assert listed(source) == {"b.png": []} and lost(source)[name].startswith("absent")
    else:
        with pytest.raises(SourceError, match="not a path inside the folder"):
            listed(source)


def test_links_to_folders_are_named_and_not_followed(tmp_path):
    """DVC does not look behind them, so a change there would go unseen; and they can go round in circles."""
    write_folder(tmp_path, {"far/a.png": A, "far/a.tar": "", "data/b.png": B})
    for folder in ("data", "none", "tars", "parquet"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "linked").symlink_to(tmp_path / "far")
        (tmp_path / folder / "round").symlink_to(tmp_path / folder)
    write_tar(tmp_path / "tars/a.tar", {"0.png": A})
    write_parquet(tmp_path / "parquet/a.parquet", {"image": [A], "text": ["x"]})
    reason = "a link to a folder, which is not followed: DVC sees no change behind it"
    for folder, path in (("data", "b.png"), ("tars", "a.tar!0.png"), ("parquet", "a.parquet#0")):
        source = open_source(str(tmp_path / folder))
        assert list(listed(source)) == [path]
        assert unmatched(source) == [(name, "folder", reason) for name in ("linked", "round")]
    with pytest.raises(SourceError, match=r"holds no pictures.* \(links to folders are not followed: linked, round\)"):
        open_source(str(tmp_path / "none"))


def test_broken_links_and_pipes_are_named(tmp_path):
    write_folder(tmp_path, {"a.png": A})
    write_folder(tmp_path, {name: B for name in ("good.png", "good.txt", "spoilt.png")})
    links = {
        "b.png": "absent.png",
        "c.heic": "c.heic",
        "spoilt.txt": "x",
        "orphan.txt": "x",
        "d.md": "../d",
        "e.bin": "x",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "good.txt").write_text("x")
    (tmp_path / "metadata.jsonl").write_text(jsonl({"file_name": "e.bin", "text": "x"}))
    os.mkfifo(tmp_path / "f.png")
    os.mkfifo(tmp_path / "f")
    source = open_source(str(tmp_path))
    assert listed(source) == {"a.png": [], "good.png": [("x", None)]}
    end, pipe = "where nothing is; mend it or remove it", "no plain file: a pipe, a socket or a device; remove it"
    assert lost(source) == {
        "b.png": f"broken link: to absent.png, {end}",
        "c.heic": f"broken link: to c.heic, {end}",
        "e.bin": f"broken link: to x, {end}",
        "f.png": pipe,
        "spoilt.png": f"caption not read: spoilt.txt: broken link: to x, {end}",
    }
    assert unmatched(source) == [
        ("d.md", "file", f"broken link: to ../d, {end}"),
        ("f", "file", pipe),
        ("orphan.txt", "caption", "no picture of this name"),
        ("spoilt.txt", "caption", f"not read: spoilt.txt: broken link: to x, {end}"),
    ]
    (tmp_path / "metadata.csv").symlink_to("metadata.csv")
    with pytest.raises(SourceError, match="metadata.csv: broken link: to metadata.csv"):
        listed(source)


@pytest.mark.parametrize("end", ["tar", "parquet"])
@pytest.mark.parametrize("is_alone", [True, False])
def test_a_broken_link_and_a_pipe_in_the_place_of_a_shard_stop(tmp_path, end, is_alone):
    """How many pictures it stands for nothing says."""
    if not is_alone:
        write_tar(tmp_path / "a.tar", {"0.png": A})
    (tmp_path / f"x.{end}").symlink_to("/absent/x")
    with pytest.raises(
        SourceError, match=rf"x\.{end}: broken link: to /absent/x, where nothing is; mend it or remove it"
    ):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="data.images is .*broken link: to /absent/x"):
        open_source(str(tmp_path / f"x.{end}"))
    (tmp_path / f"x.{end}").unlink()
    os.mkfifo(tmp_path / f"x.{end}")
    with pytest.raises(SourceError, match=rf"x\.{end}: no plain file: a pipe"):
        open_source(str(tmp_path))


def test_names_that_are_no_text(tmp_path):
    """Rejected rows; the pictures beside them are used."""
    write_folder(tmp_path, {"a.png": b"", "a.txt": "one"})
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
        pass
    (part,) = open_source(str(tmp_path)).parts()
    assert part.paths.to_pylist() == ["a.png"] and part.texts.to_pylist() == ["one"]
    assert [(lost.path, lost.reason) for lost in part.lost] == [
        ("caf\\udce9.png", "bad name: not UTF-8; rename the file")
    ]


def test_odd_names(tmp_path):
    names = ["a b.png", "größe 大.png", "x!y.tar!z.png", "p#1.png", "new\nline.png", "-.png", "~.png", "C:\\x.png"]
    write_folder(tmp_path, {name: A for name in names})
    assert sorted(listed(open_source(str(tmp_path)))) == sorted(names)


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


@pytest.mark.parametrize(
    "binary", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
@pytest.mark.parametrize(
    "text",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string_view()),
    ],
)
@pytest.mark.parametrize("struct", [False, True])
def test_parquet_types(tmp_path, binary, text, struct):
    if struct and pa.types.is_dictionary(binary):
        pytest.skip("pyarrow does not write them")
    nested = pa.types.is_list(text) or pa.types.is_large_list(text)
    texts = pa.array([["x"], None, ["z", "y"]] if nested else ["x", None, "z"], text)
    pictures = pa.array([A, None, C], binary)
    if struct:
        pictures = pa.StructArray.from_arrays([pictures, pa.array(["a", "b", "c"])], ["bytes", "path"])
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": pictures, "text": texts}, 3)))
    assert listed(source) == {
        "a.parquet#0": [("x", None)],
        "a.parquet#1": [],
        "a.parquet#2": [("y", None), ("z", None)] if nested else [("z", None)],
    }
    assert [source.read(f"a.parquet#{row}") for row in range(3)] == [A, b"", C]
    assert open_source(str(tmp_path)).file("a.parquet#2") == str(tmp_path / "a.parquet")


# --- which is which


def test_unusable_places(tmp_path):
    with pytest.raises(SourceError, match="there is no such folder or file"):
        open_source(str(tmp_path / "absent"))
    with pytest.raises(SourceError, match="holds no pictures, no .tar and no .parquet"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match="wanted a folder, a .tar"):
        open_source(str(write_folder(tmp_path, {"a.zip": "x"}) / "a.zip"))
    write_folder(tmp_path, {"a.tar.gz": "x", "d/b.TGZ": "x"})
    with pytest.raises(SourceError, match=r"holds compressed tars \(a.tar.gz, d/b.TGZ\); unpack them"):
        open_source(str(tmp_path))
    (tmp_path / "a.tar.gz").unlink()
    (tmp_path / "d/b.TGZ").unlink()
    write_tar(tmp_path / "a.tar", {"0.png": A})
    write_parquet(tmp_path / "a.parquet", {"image": [A], "text": ["x"]})
    with pytest.raises(SourceError, match=r"holds tars \(a.tar\) and Parquet files \(a.parquet\)"):
        open_source(str(tmp_path))
    write_folder(tmp_path, {"d/a.png": A})
    with pytest.raises(
        SourceError, match="holds pictures and a.parquet; give a folder with pictures alone or without any"
    ):
        listed(open_source(str(tmp_path)))


def test_img2dataset(tmp_path):
    """Its two forms: tars, or files, beside tables of what it knows about them."""
    table = {"url": ["x"], "caption": ["one"], "status": ["success"]}
    for form in ("tars", "files"):
        write_parquet(tmp_path / form / "00000.parquet", table)
        write_folder(tmp_path / form, {"00000_stats.json": "{}"})
    record = '{"caption": "one", "url": "x", "key": "000000000", "status": "success", "sha256": "0"}'
    write_tar(tmp_path / "tars/00000.tar", {"000000000.jpg": A, "000000000.json": record, "000000000.txt": "one"})
    write_folder(tmp_path / "files/00000", {"000000000.jpg": A, "000000000.json": record, "000000000.txt": "one"})
    tars, files = open_source(str(tmp_path / "tars")), open_source(str(tmp_path / "files"))
    assert listed(tars) == {"00000.tar!000000000.jpg": [("one", None)] * 2}  # which the index makes one
    assert listed(files) == {"00000/000000000.jpg": [("one", None)]}
    reason = "a table without pictures beside tars; the tars are read"
    assert unmatched(tars) == [("00000.parquet", "file", reason)] and others(tars) == ["00000_stats.json"]
    assert others(files) == ["00000.parquet", "00000/000000000.json", "00000_stats.json"]


def test_names_that_cannot_be_printed(tmp_path):
    """What is no UTF-8, in a file's name or as half a surrogate pair in JSON, is shown with escapes."""
    write_folder(tmp_path, {"a.png": A, "metadata.jsonl": '{"file_name": "\\ud83d.png", "text": "x"}\n'})
    for name in (b"caf\xe9.md", b"caf\xe9.txt"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb"):
            pass
    source = open_source(str(tmp_path))
    assert others(source) == ["caf\\udce9.md"] and list(lost(source)) == ["\\ud83d.png"]
    assert [path for path, _, _ in unmatched(source)] == ["caf\\udce9.txt"]


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


def test_stamps_show_a_folder_put_in_the_place_of_another(tmp_path):
    """Whose files may have the same size and times: renaming a folder leaves them."""
    write_folder(tmp_path, {"one/d/a.png": A, "two/d/a.png": bytes(len(A))})
    stamps = [next(Folder(str(tmp_path / name)).parts()).stamps[0] for name in ("one", "two")]
    assert stamps[0][STAMP.index("inode")] != stamps[1][STAMP.index("inode")]
