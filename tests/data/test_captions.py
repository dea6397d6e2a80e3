import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import captions
from pipeline.data.captions import CaptionError


@given(st.text(), st.none() | st.text())
def test_name_is_the_hash_of_the_json(text, text_2):
    wanted = hashlib.blake2b(json.dumps([text, text_2]).encode(), digest_size=16).digest()
    assert captions.name(text, text_2) == wanted


def test_names_differ_where_captions_do():
    pairs = [("", None), ("", ""), ("a", None), ("a", "a"), ('a", "b', None), ("a", "b"), ("null", None), ("a", "null")]
    assert len({captions.name(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    "text, text_2, wanted",
    [
        ("a cat", None, [("a cat", None)]),
        ("  a cat\n", " x ", [("a cat", "x")]),
        ("größe 大 🐈", None, [("größe 大 🐈", None)]),
        (None, None, []),
        ("", None, []),
        ("   ", "", []),
        ([], None, []),
        (["a", "b"], None, [("a", None), ("b", None)]),
        (["a", "", "b"], None, [("a", None), ("b", None)]),
        (["a", "b"], ["x", "y"], [("a", "x"), ("b", "y")]),
        (["a", "b"], "x", [("a", "x"), ("b", "x")]),
        ("a", ["x", "y"], [("a", "x"), ("a", "y")]),
        (None, "x", [("", "x")]),
        ("a", "", [("a", None)]),
    ],
)
def test_pairs(text, text_2, wanted):
    assert captions.pairs(text, text_2, "here") == wanted


@pytest.mark.parametrize(
    "text, text_2, message",
    [
        (["a", "b"], ["x", "y", "z"], "f:3: text has 2 captions and text_2 3"),
        (["a"], ["x", "y"], "f:3: text has 1 captions and text_2 2"),
        (7, None, "f:3: found text 7, wanted a string or a list"),
        ("a", {"b": 1}, "f:3: found text_2 {'b': 1}"),
        ("half \ud83d", None, "f:3: text .* half a surrogate pair"),
    ],
)
def test_pairs_that_cannot_be(text, text_2, message):
    with pytest.raises(CaptionError, match=message):
        captions.pairs(text, text_2, "f:3")


def test_kohya_lines_and_whole_files():
    data = "\ufeffa cat\r\n\r\n  on a mat  \n".encode()
    assert captions.lines(data, "f") == [("a cat", None), ("on a mat", None)]
    assert captions.whole(data, "f") == [("a cat\r\n\r\n  on a mat", None)]
    assert captions.lines(b" \n\n", "f") == captions.whole(b" \n\n", "f") == []


OTHER_BREAKS = "\x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029 \r".split(" ")  # what str.splitlines ends a line at


@pytest.mark.parametrize("mark", OTHER_BREAKS)
def test_only_line_feeds_end_a_line(tmp_path, mark):
    text = f"a cat{mark}on a mat"
    assert captions.lines(f"{text}\r\nanother\n".encode(), "f") == [(text, None), ("another", None)]
    line = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"{line}\r\n{line}\n".encode())
    (tmp_path / "metadata.csv").write_bytes(f'file_name,text\r\na.png,"{text}"\r\nb.png,{text}\n'.encode())
    assert [pairs for _, _, pairs, _ in captions.metadata(tmp_path / "metadata.jsonl")] == [[(text, None)]] * 2
    if mark == "\r":  # which a CSV file has to quote
        with pytest.raises(CaptionError, match="metadata.csv:3: not CSV: new-line character seen in unquoted field"):
            list(captions.metadata(tmp_path / "metadata.csv"))
    else:
        assert [pairs for _, _, pairs, _ in captions.metadata(tmp_path / "metadata.csv")] == [[(text, None)]] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding):
    data = "größe\nzwei".encode(encoding)
    assert captions.lines(data, "f") == [("größe", None), ("zwei", None)]
    assert captions.whole(data, "f") == [("größe\nzwei", None)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_metadata_in_any_unicode(tmp_path, encoding):
    """U+010A and U+0A0A have the byte of a line feed within."""
    mark = "\ufeff" if encoding.endswith("e") else ""
    text = "größe \u010a \u0a0a"
    lines = f'{{"file_name": "a.png", "text": "{text}"}}\r\n{{"file_name": "b.png", "text": "b"}}\n'
    (tmp_path / "metadata.jsonl").write_bytes((mark + lines).encode(encoding))
    (tmp_path / "metadata.csv").write_bytes(f"{mark}file_name,text\na.png,{text}\nb.png,b\n".encode(encoding))
    for name, first in (("metadata.jsonl", 1), ("metadata.csv", 2)):
        file = tmp_path / name
        wanted = [
            (f"{file}:{first}", "a.png", [(text, None)], (None, None)),
            (f"{file}:{first + 1}", "b.png", [("b", None)], (None, None)),
        ]
        assert list(captions.metadata(file)) == wanted
        if encoding.startswith("utf-16"):
            with open(file, "ab") as stream:
                stream.write(b"x")
            with pytest.raises(CaptionError, match=f"{name}: not UTF-16.*; write it as UTF-8"):
                list(captions.metadata(file))


@pytest.mark.parametrize("parse", [captions.lines, captions.whole, captions.record])
def test_bad_files(parse):
    with pytest.raises(CaptionError, match="x.txt: not UTF-8"):
        parse(b"caf\xe9", "x.txt")
    with pytest.raises(CaptionError, match="x.txt: 1048577 bytes is too long"):
        parse(b"a" * ((1 << 20) + 1), "x.txt")


def test_webdataset_json():
    assert captions.record(b'{"text": ["a", "b"], "text_2": "x", "width": 3}', "f") == (
        [("a", "x"), ("b", "x")],
        (None, None),
    )
    assert captions.record(b'{"caption": "a", "sha": "0"}', "f") == ([("a", None)], (None, None))
    assert captions.record(b"{}", "f") == ([], (None, None))
    with pytest.raises(CaptionError, match="f: found JSON of type list"):
        captions.record(b"[]", "f")


def test_jsonl(tmp_path):
    file = tmp_path / "metadata.jsonl"
    file.write_text(
        '\ufeff{"file_name": "a.png", "text": "x"}\n\n{"text": null, "file_name": "b/c.png", "more": 1}\n',
        encoding="utf-8",
    )
    assert list(captions.metadata(file)) == [
        (f"{file}:1", "a.png", [("x", None)], (None, None)),
        (f"{file}:3", "b/c.png", [], (None, None)),
    ]


def test_csv(tmp_path):
    file = tmp_path / "metadata.csv"
    file.write_text('\ufefffile_name,text,text_2\na.png,"x, y",\nb.png,"two\nlines",z\n', encoding="utf-8")
    assert [(name, pairs) for _, name, pairs, _ in captions.metadata(file)] == [
        ("a.png", [("x, y", None)]),
        ("b.png", [("two\nlines", "z")]),
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "x"}\n{"file_name": "b.png", "te',
            "metadata.jsonl:2: not JSON",
        ),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "x"}\nnull\n',
            "metadata.jsonl:2: found JSON of type NoneType",
        ),
        ("metadata.jsonl", b'{"file_name": "a.png"}\n', "metadata.jsonl:1: no text; found file_name"),
        ("metadata.jsonl", b'{"text": "x"}\n', "metadata.jsonl:1: found file_name None"),
        ("metadata.jsonl", b'{"file_name": 3, "text": "x"}\n', "metadata.jsonl:1: found file_name 3"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": 3}\n', "metadata.jsonl:1: found text 3"),
        ("metadata.jsonl", b'\n\n{"file_name": "a.png", "text": "caf\xe9"}\n', "metadata.jsonl:3: not UTF-8"),
        ("metadata.jsonl", b"[" * 100_000, "metadata.jsonl:1: not JSON"),
        ("metadata.csv", b"file_name,text\na.png,x\nb.png\n", "metadata.csv:3: this row has not the 2 cells"),
        ("metadata.csv", b"file_name,text\na.png,x, y\n", "metadata.csv:2: this row has not the 2 cells"),
        ("metadata.csv", b'file_name,text\na.png,"x\n', "metadata.csv:2: not CSV"),
        ("metadata.csv", b"file_name,caption\na.png,x\n", "metadata.csv:2: no text; found file_name, caption"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", "metadata.csv:2: not UTF-8"),
    ],
)
def test_broken_metadata_names_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaptionError, match=message) as error:
        list(captions.metadata(tmp_path / name))
    assert str(error.value).endswith("(no table is used of which a line is broken: mend or remove that line)")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metadata.csv", "", "holds no row"),
        ("metadata.csv", "file_name,text\n", "holds no row"),
        ("metadata.jsonl", "\n\n", "holds no row"),
        ("metadata.csv", "name,text\na.png,x\n", "metadata.csv:1: no column file_name.*'name,text'"),
        (
            "metadata.csv",
            "file_name;text\na.png;a cat\n",
            "no column file_name.*'file_name;text'.*separated by commas$",
        ),
    ],
)
def test_a_table_of_which_nothing_can_be_used_is_an_error(tmp_path, name, text, said):
    """Else all its pictures would be trained on without their captions."""
    (tmp_path / name).write_text(text)
    with pytest.raises(captions.CaptionError, match=said) as error:
        list(captions.metadata(tmp_path / name))
    assert "remove that line" not in str(error.value)


def test_nothing_in_a_list_is_no_caption():
    assert captions.pairs(["a", None, "c"], None, "x") == [("a", None), ("c", None)]
    assert captions.pairs(["a", None], ["b", "d"], "x") == [("a", "b"), ("", "d")]
