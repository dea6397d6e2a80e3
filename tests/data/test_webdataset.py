"""WebDataset tars as a source."""

import io
import subprocess
import tarfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from tests.data.data_sets import picture, write_tar
from tests.data.test_sources import listed, lost, others, unmatched

A, B, C = picture(1), picture(2), picture(3)


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
    assert others(source) == ["a.tar!002.cls"]
    rule = "WebDataset's rule: its extension is .seg.png (from the first dot on), and sample 000 has other members"
    assert unmatched(source) == [
        ("a.tar!000.seg.png", "file", rule),
        ("a.tar!orphan.txt", "caption", "no picture of this name"),
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
    pack = "pack the tar again, without --sparse, with --dereference and --hard-dereference"
    assert lost(source) == {
        "a.tar!l.png": f"no plain file: a link to /etc/passwd; {pack}",
        "a.tar!h.png": f"no plain file: a link to ../x; {pack}",
    }
    with pytest.raises(SourceError, match="no member 'l.png'"):
        source.read("a.tar!l.png")


def test_a_tar_that_changes_is_read_anew(tmp_path):
    source = open_source(str(write_tar(tmp_path / "a.tar", {"0.png": A, "1.png": B})))
    assert source.read("a.tar!1.png") == B
    write_tar(tmp_path / "a.tar", {"0.png": C + b"more", "1.png": A})
    assert source.read("a.tar!1.png") == A


def test_compressed_tars(tmp_path):
    for mode, form in (("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")):
        with tarfile.open(tmp_path / "a.tar", f"w:{mode}"):
            pass
        with pytest.raises(SourceError, match=rf"a.tar is compressed \({form}\); unpack it to a .tar"):
            listed(open_source(str(tmp_path / "a.tar")))


def test_names_that_are_no_text(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("caf\udce9.png"))
    with pytest.raises(SourceError, match="the name of the member 'caf.udce9.png' is not UTF-8"):
        listed(open_source(str(tmp_path / "a.tar")))


def test_capitals_unicode_forms_and_captions_of_both_kinds(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    members = {
        "IMG_1.JPG": A,
        "IMG_1.TXT": "one",
        f"{nfd}.jpg": B,
        f"{nfc}.txt": "two",
        "c.jfif": C,
        "./c.Json": '{"text": "three"}',
        "d.PNG": A,
        "D.caption": "four\nfive",
        "e.heic": "",
        "e.txt": "x",
        "f.cr2": "",
        "f.jpg": B,
    }
    write_tar(tmp_path / "A.TAR", members)
    source = open_source(str(tmp_path))
    assert listed(source) == {
        "A.TAR!IMG_1.JPG": [("one", None)],
        f"A.TAR!{nfd}.jpg": [("two", None)],
        "A.TAR!c.jfif": [("three", None)],
        "A.TAR!d.PNG": [("four\nfive", None)],
        "A.TAR!f.jpg": [],
    }
    assert lost(source) == {"A.TAR!e.heic": "not read: HEIC; convert it to PNG or JPEG"}
    assert unmatched(source) == [
        ("A.TAR!e.txt", "caption", "its picture is not read"),
        ("A.TAR!f.cr2", "picture", "not read, and another of this name is"),
    ]


def test_names_with_dots(tmp_path):
    """WebDataset's key ends at the first dot. Names that a person gave mean the last one."""
    members = {
        "photo 1.5.jpg": A,
        "photo 1.5.txt": "one",
        "photo 1.jpg": B,
        "photo 1.txt": "two",
        "v1.0 cat.png": C,
        "000.jpg": A,
        "000.txt": "three",
        "000.depth.png": B,
        "001.txt": "four",
        "001.0.jpg": C,
    }
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    assert listed(source) == {
        "a.tar!photo 1.5.jpg": [("one", None)],
        "a.tar!photo 1.jpg": [("two", None)],
        "a.tar!v1.0 cat.png": [],
        "a.tar!000.jpg": [("three", None)],
    }
    assert [(path, what) for path, what, _ in unmatched(source)] == [
        ("a.tar!000.depth.png", "file"),
        ("a.tar!001.0.jpg", "file"),
        ("a.tar!001.txt", "caption"),
    ]


def test_a_text_named_by_the_whole_name_of_its_picture(tmp_path):
    """As in a folder (tests/data/test_sources.py)."""
    pictures = {name: A for name in ("a.png", "d/b.PNG", "c.jpg", "c.jpg.png", "e.png", "e.jpg", "f 1.5.png")}
    texts = {"a.png.txt": "a", "a.txt": "too", "d/b.png.caption": "b", "c.jpg.txt": "c", "e.png.txt": "e"}
    more = {"f 1.5.png.txt": "f", "g.heic.txt": "none"}
    source = open_source(str(write_tar(tmp_path / "a.tar", pictures | texts | more)))
    assert listed(source) == {
        "a.tar!a.png": [("a", None), ("too", None)],
        "a.tar!d/b.PNG": [("b", None)],
        "a.tar!c.jpg": [],
        "a.tar!c.jpg.png": [("c", None)],
        "a.tar!e.jpg": [],
        "a.tar!e.png": [("e", None)],
        "a.tar!f 1.5.png": [("f", None)],
    }
    assert unmatched(source) == [("a.tar!g.heic.txt", "caption", "no picture of this name")]


def test_two_members_of_one_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for data in (A, B):
            member = tarfile.TarInfo("0.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    source = open_source(str(tmp_path / "a.tar"))
    assert source.read("a.tar!0.png") == B and listed(source) == {"a.tar!0.png": []}
    assert unmatched(source) == [("a.tar!0.png", "file", "a later member of the same name stands in for it")]


def test_tars_behind_links(tmp_path):
    """As in a Hugging Face hub snapshot."""
    write_tar(tmp_path / "blobs/1.tar", {"0.png": A, "0.txt": "one"})
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/a.tar").symlink_to("../blobs/1.tar")
    source = open_source(str(tmp_path / "snapshot"))
    assert listed(source) == {"a.tar!0.png": [("one", None)]}
    assert source.file("a.tar!0.png") == str(tmp_path / "snapshot/a.tar")
    with pytest.raises(SourceError, match="not a path inside"):
        source.read("../blobs/1.tar!0.png")


def samples(count: int) -> dict[str, bytes | str]:
    return {f"{n:03}.{end}": data for n in range(count) for end, data in (("png", picture(n)), ("txt", f"caption {n}"))}


def test_a_cut_tar_counts_by_the_largest_whole_one(tmp_path):
    whole = write_tar(tmp_path / "b.tar", samples(20))
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        place = tar.getmember("005.png").offset
    (tmp_path / "a.tar").write_bytes(data[: place + 700])
    assert counts(tmp_path) == [("a.tar", 15)]
    whole.unlink()
    assert counts(tmp_path) == [("a.tar", 5)]  # as many as lie before it, if nothing tells
    assert lost(open_source(str(tmp_path)))["a.tar"] == (
        f"damaged: at byte {place}: the file ends within 005.png; 5 pictures lie before it, up to 5 are lost; get the "
        f"file again"
    )
    (tmp_path / "a.tar").write_bytes(bytes(1 << 20))  # a download that was given its space and never came
    write_tar(tmp_path / "b.tar", samples(20))
    assert counts(tmp_path) == [("a.tar", 20)]


def test_damage_between_members_counts_by_its_bytes(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(20))
    with tarfile.open(file) as tar:
        first, last = tar.getmember("005.png").offset, tar.getmember("008.png").offset
    data = bytearray(file.read_bytes())
    data[first + 150] ^= 1
    file.write_bytes(data)
    assert counts(tmp_path) == [("a.tar", 2)]
    assert len(listed(open_source(str(tmp_path)))) == 19
    data[first:last] = bytes(last - first)
    file.write_bytes(data)
    assert counts(tmp_path) == [("a.tar", 4)]  # three, and one that the damage may have touched
    assert len(listed(open_source(str(tmp_path)))) == 17


def test_tars_without_an_end_and_put_together(tmp_path):
    file = write_tar(tmp_path / "a.tar", samples(2))
    data = file.read_bytes()
    file.write_bytes(data[: len(data.rstrip(b"\0")) // 512 * 512 + 512])
    ((path, what, reason),) = unmatched(open_source(str(file)))
    assert (path, what) == ("a.tar", "file") and reason.startswith("no end mark")
    file.write_bytes(data + write_tar(tmp_path / "b.tar", {"x.png": C}).read_bytes())
    source = open_source(str(file))
    assert len(listed(source)) == 3 and not lost(source)
    assert unmatched(source) == [("a.tar", "file", f"several tars put together: another begins at byte {len(data)}")]
    file.write_bytes(data + b"x")
    ((path, what, reason),) = unmatched(open_source(str(file)))
    assert (path, what) == ("a.tar", "file") and reason.startswith("bytes behind its end mark: 1, too few")


def counts(folder) -> list[tuple[str, int]]:
    return [(path, count) for part in open_source(str(folder)).parts() for path, _, count in part.lost]


def test_a_broken_caption_in_a_tar_is_named(tmp_path):
    """Its picture is not used without it, and neither stops the others."""
    members = {"0.png": A, "0.txt": b"caf\xe9", "1.png": A, "1.json": "{", "1.txt": "x", "2.png": A, "2.txt": "two"}
    write_tar(tmp_path / "a.tar", members)
    source = open_source(str(tmp_path))
    assert listed(source) == {"a.tar!2.png": [("two", None)]}
    reasons = lost(source)
    assert list(reasons) == ["a.tar!0.png", "a.tar!1.png"]
    assert reasons["a.tar!0.png"].startswith("caption not read: a.tar!0.txt: not UTF-8: ")
    assert reasons["a.tar!1.png"].startswith("caption not read: a.tar!1.json: not JSON: ")
    assert [row[:2] for row in unmatched(source)] == [("a.tar!0.txt", "caption"), ("a.tar!1.json", "caption")]


def test_json_without_a_caption_is_named(tmp_path):
    """Where the sample has no other: beside a text it is what a tool knows about the picture."""
    members = {"0.png": A, "0.json": '{"prompt": "x"}', "1.png": A, "1.json": '{"width": 40}', "1.txt": "x"}
    write_tar(tmp_path / "a.tar", members)
    reason = "its JSON has no text or caption, or an empty one"
    assert unmatched(open_source(str(tmp_path))) == [("a.tar!0.json", "caption", reason)]


def test_gnu_tars_own_archives(tmp_path):
    """Sparse members, long names and links, in each of its formats."""
    folder = tmp_path / "data"
    folder.mkdir()
    long = "long" * 50
    (folder / f"{long}.png").write_bytes(A)
    (folder / f"{long}.txt").write_text("one")
    with open(folder / "sparse.png", "wb") as file:
        file.write(B)
        file.truncate(1 << 20)
    (folder / "z.png").write_bytes(C)
    (folder / "zz.png").hardlink_to(folder / "z.png")
    for form in ("gnu", "oldgnu", "posix"):
        tar = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", f"--format={form}", "--sparse", "--sort=name", "-cf", tar, "-C", folder, "."], check=True
        )
        source = open_source(str(tar))
        assert listed(source) == {f"{form}.tar!./{long}.png": [("one", None)], f"{form}.tar!./z.png": []}, form
        assert {path.rpartition("/")[2]: reason.partition(";")[0] for path, reason in lost(source).items()} == {
            "sparse.png": "no plain file: sparse",
            "zz.png": "no plain file: a link to ./z.png",
        }


def test_an_empty_tar_beside_others_is_a_loss(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.png": b"x", "1.txt": b"one"})
    (tmp_path / "b.tar").write_bytes(b"")
    parts = list(open_source(str(tmp_path)).parts())
    assert [(lost.path, lost.reason.partition(":")[0]) for part in parts for lost in part.lost] == [
        ("b.tar", "damaged")
    ]
