"""samples.parquet: which pictures an epoch has, how often, and with which captions."""

import csv
from pathlib import Path

import pytest

from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.captions import CaptionError
from pipeline.data.index import index
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import contents, jsonl, name, picture, rows, write_folder, write_parquet, write_tar

A, B, C = picture(1), picture(2), picture(3)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, max_samples: int | None = None, **columns) -> Summary:
    source = open_source(str(data), **columns)
    return index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, max_samples=max_samples)


def samples(out: Path) -> dict[bytes, tuple[float, set[str]]]:
    """Picture -> its repeats and captions, where no picture is in two sets."""
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    found: dict[bytes, tuple[float, set[str]]] = {}
    for row in rows(out / "samples.parquet"):
        assert row["set"] == 0 and not row["class_images"]
        assert (row["loss_weight"], row["caption_dropout"]) == (1, None)
        repeats, captions = found.setdefault(row["image"], (row["repeats"], set()))
        assert repeats == row["repeats"]
        captions.add(texts[row["caption"]])
    return found


def test_a_copy_counts_and_is_listed(tmp_path):
    files = {"a.png": A, "b/a.png": A, "b/c.png": A, "b.png": B, "a.txt": "one", "b/a.txt": "two", "z.png": A[:500]}
    data = write_folder(tmp_path / "data", files | {"y.png": A[:500]})  # copies of what is rejected are none
    summary = run(data, tmp_path / "out")
    assert samples(tmp_path / "out") == {name(A): (3, {"one", "two"}), name(B): (1, {""})}
    with open(tmp_path / "out/copies.csv", newline="") as file:
        assert list(csv.reader(file)) == [["path", "copy_of"], ["b/a.png", "a.png"], ["b/c.png", "a.png"]]
    assert (summary.samples, summary.often, summary.copied) == (2, 4, 2)
    assert "2 files are copies (copies.csv): each counts, and their pictures are encoded once: a.png = b/a.png" in str(
        summary
    )
    assert "2 samples, 4 an epoch" in str(summary)


def test_a_plain_data_set_has_each_picture_once(tmp_path):
    summary = run(write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "b.txt": "x\ny"}), tmp_path / "out")
    assert samples(tmp_path / "out") == {name(A): (1, {""}), name(B): (1, {"x", "y"})}
    assert (tmp_path / "out/copies.csv").read_text() == "path,copy_of\n"
    assert "copies" not in str(summary) and "an epoch" not in str(summary)


def test_captions_of_copies_are_pooled(tmp_path):
    """As docs/own-data.md has it, whatever number of the copies has each."""
    files = {f"{n}.png": A for n in range(5)} | {f"{n}.txt": "x" for n in range(3)} | {"3.txt": "y"}
    run(write_folder(tmp_path / "data", files), tmp_path / "out")
    assert samples(tmp_path / "out") == {name(A): (5, {"x", "y"})}
    assert [row["chance"] for row in rows(tmp_path / "out/samples.parquet")] == [1, 1]


ROWS = [
    {"file_name": "a.png", "text": "one", "repeats": 3},
    {"file_name": "b.png", "text": "two", "repeats": 2, "weight": 0.25},
    {"file_name": "c.png", "text": "three", "weight": None},
]
TIMES = {name(A): (3, {"one"}), name(B): (0.5, {"two"}), name(C): (1, {"three"})}


def test_repeats_and_weights_of_tables(tmp_path):
    pictures = {"a.png": A, "b.png": B, "c.png": C}
    lines = "file_name,text,repeats,weight\na.png,one,3,\nb.png,two,2,0.25\nc.png,three,,\n"
    write_folder(tmp_path / "jsonl", pictures | {"metadata.jsonl": jsonl(*ROWS)})
    write_folder(tmp_path / "csv", pictures | {"metadata.csv": lines})
    members = {f"{row['file_name'][0]}.json": jsonl(row) for row in ROWS}
    write_tar(tmp_path / "tar/0.tar", pictures | members)
    columns = {key: [row.get(key) for row in ROWS] for key in ("text", "repeats", "weight")}
    write_parquet(tmp_path / "parquet/0.parquet", {"image": [A, B, C]} | columns)
    for form in ("jsonl", "csv", "tar", "parquet"):
        summary = run(tmp_path / form, tmp_path / "out")
        assert samples(tmp_path / "out") == TIMES, form
        assert summary.often == 4.5


def test_a_changed_weight_changes_samples_parquet_alone(tmp_path):
    """So that DVC runs neither cache again."""
    data = write_folder(tmp_path / "data", {"a.png": A, "metadata.jsonl": jsonl(ROWS[0])})
    run(data, tmp_path / "one")
    write_folder(data, {"metadata.jsonl": jsonl(ROWS[0] | {"repeats": 4})})
    run(data, tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {file for file in one if one[file] != two[file]} == {"samples.parquet"}


@pytest.mark.parametrize("value", [-1, "12 kg", True, 1e6, float("nan"), [2], {}])
def test_what_is_no_weight_is_refused(tmp_path, value):
    rows = jsonl({"file_name": "a.png", "text": "x", "weight": value})
    write_folder(tmp_path / "data", {"a.png": A, "metadata.jsonl": rows})
    with pytest.raises(CaptionError, match=r"metadata.jsonl:1: found weight .*, wanted a number from 0 to 100,000"):
        run(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_rows_of_a_picture_agree_on_its_repeats(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A})
    write_folder(data, {"metadata.jsonl": jsonl(ROWS[0], {"file_name": "a.png", "text": "two", "repeats": 3})})
    run(data, tmp_path / "out")
    assert samples(tmp_path / "out") == {name(A): (3, {"one", "two"})}
    write_folder(data, {"metadata.jsonl": jsonl(ROWS[0], {"file_name": "./a.png", "text": "two", "repeats": 2})})
    with pytest.raises(SourceError, match=r"metadata.jsonl:2: './a.png' 2 times an epoch, 3 in a row before"):
        run(data, tmp_path / "out")


def test_columns_of_other_names(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"img": [A, B], "prompt": ["one", "two"]})
    with pytest.raises(SourceError, match=r"columns img, prompt; wanted image and text \(data.image_column"):
        run(tmp_path / "x.parquet", tmp_path / "out")
    run(tmp_path / "x.parquet", tmp_path / "out", image_column="img", caption_column="prompt")
    assert samples(tmp_path / "out") == {name(A): (1, {"one"}), name(B): (1, {"two"})}
    source = open_source(str(tmp_path / "x.parquet"), image_column="img", caption_column="prompt")
    assert source.read("x.parquet#1") == B
    row = {"file_name": "a.png", "prompt": "one", "text": "another"}
    write_folder(tmp_path / "data", {"a.png": A, "metadata.jsonl": jsonl(row)})
    run(tmp_path / "data", tmp_path / "out", caption_column="prompt")
    assert samples(tmp_path / "out") == {name(A): (1, {"one"})}
    write_tar(tmp_path / "tar/0.tar", {"a.png": A, "a.json": jsonl(row)})
    run(tmp_path / "tar", tmp_path / "out", caption_column="prompt")
    assert samples(tmp_path / "out") == {name(A): (1, {"one"})}


def test_another_column_of_pictures(tmp_path):
    """Before: what was known of the first column's was taken for this one's."""
    write_parquet(tmp_path / "x.parquet", {"image": [A, B], "later": [B, A], "text": ["one", "two"]})
    for column, first in (("image", A), ("later", B), ("image", A)):
        run(tmp_path / "x.parquet", tmp_path / "out", image_column=column)
        assert samples(tmp_path / "out")[name(first)] == (1, {"one"})


@pytest.mark.parametrize("form", ["folder", "tars"])
def test_so_many_pictures_and_no_more(tmp_path, form):
    """The same ones whatever else there is, in any order, and only those are read."""
    pictures = {f"{number}.png": picture(number) for number in range(12)}
    captions = {f"{number}.txt": f"text {number}" for number in range(12)}

    def write(files: dict, folder: str) -> Path:
        if form == "folder":
            return write_folder(tmp_path / folder, files)
        for part in (0, 1):
            chosen = {path: data for path, data in files.items() if int(path.split(".")[0]) % 2 == part}
            write_tar(tmp_path / folder / f"{part}.tar", chosen)
        return tmp_path / folder

    data = write(pictures | captions, "data")
    summary = run(data, tmp_path / "out", max_samples=5)
    assert summary.files == summary.used == summary.read == 5
    chosen = samples(tmp_path / "out")
    assert len(chosen) == 5
    for image, (_, texts) in chosen.items():
        assert texts == {f"text {next(n for n in range(12) if name(picture(n)) == image)}"}
    run(data, tmp_path / "fewer", max_samples=3)
    assert chosen.keys() > samples(tmp_path / "fewer").keys()
    assert run(data, tmp_path / "out", max_samples=12).used == run(data, tmp_path / "out", max_samples=99).used == 12
