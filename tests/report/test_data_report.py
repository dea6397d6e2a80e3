"""The page of a data set: what is on it, that it is a function of the data alone, and text from outside that would run.

tests/report/test_report_experiments.py opens it in a browser."""

import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import params
from pipeline.cache.building.tokens import Tokenizer
from pipeline.data import images, tables
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.part import SourceError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.report import data, data_command, data_page, thumbnails
from tests.data.data_sets import picture, rows, write_folder
from tests.project import ROOT
from tests.report.report_samples import EVIL, EVIL_NAME
from tests.report.test_report import Page

SIZES = [(32, 64), (64, 64), (64, 32)]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))


def pictures(folder: Path, count: int = 12) -> Path:
    """Two of them are copies, one is a near copy, one is in a rare bucket, two are rejected, and one has no caption."""
    files: dict[str, bytes | str] = {f"{number}.png": picture(number, 70, 70) for number in range(count)}
    files |= {f"{number}.txt": f"fox, number {number % 3}, {'snow' * (number % 2)}" for number in range(1, count)}
    files |= {"copy.png": picture(3, 70, 70), "again.png": picture(3, 70, 70), "wide.png": picture(99, 90, 45)}
    files |= {"near.jpg": again(files["5.png"])}
    files |= {"small.png": picture(98, 20, 20), f"{EVIL_NAME}.png": b"no picture", f"evil {EVIL_NAME}.txt": "x"}
    files |= {f"evil{EVIL_NAME}.png": picture(97, 64, 64), f"evil{EVIL_NAME}.txt": EVIL}
    return write_folder(folder, files)


def again(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write(folder: Path, out: Path, measure=data.letters) -> Path:
    source = open_source(str(folder))
    index(source, out, SIZES, 32, 2.0, 10**6, 0.5, 1, sets=find(str(folder), source)[0])
    data_page.write(out, source, "data/images", 10**6, out / "report.html", measure)
    return out / "report.html"


def read(out: Path) -> data.Data:
    return data.read(lambda name: open(out / name, "rb"), data.letters)


def test_what_is_on_the_page(tmp_path):
    found = Page(write(pictures(tmp_path / "data"), tmp_path / "out").read_text(encoding="utf-8"))
    assert {"data", "contact", "rejected", "rare", "near"} <= found.ids
    assert set(found.figures) == {"buckets", "aspects", "megapixels", "lengths"} <= found.ids
    (buckets,) = found.figures["buckets"]["data"]
    assert (buckets["x"], buckets["y"]) == (["64×64", "64×32"], [16, 1])
    assert (
        len(found.images) == 15 + 1 + 1 + 2
    )  # distinct ones that are used, the small one, the rare one, the near ones
    assert all(image.startswith("data:image/webp;base64,") for image in found.images)
    for text in (
        "17 pictures are used (15 distinct)", "Rejected pictures 2", "1 not an image", "too small: 20×20",
        "Pictures in rare buckets 1", "1 64×32", "wide.png", "Copies 2", "again.png 3.png", "fox 11", "snow 6",
        "Near copies 1", "near.jpg 5.png", "90×45 → 64×32", "cannot be decoded", "caption: no picture of this name",
        "Caption lengths (letters)", "python -m pipeline data report gives them in CLIP's tokens",
    ):  # fmt: skip
        assert text in found.text, text


def test_masks_and_centres_are_drawn_over_their_pictures(tmp_path):
    white = io.BytesIO()
    Image.new("RGB", (96, 96), "white").save(white, "PNG")
    half = io.BytesIO()
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 48, axis=1).repeat(96, axis=0)).save(half, "PNG")
    files = {f"{name}.png": white.getvalue() for name in ("plain", "masked", "point", "box")}
    files |= {
        "masked.mask.png": half.getvalue(),
        "point.json": '{"focus": [0.5, 0.5]}',
        "box.json": '{"bbox": [24, 24, 48, 48]}',
    }
    out = write(write_folder(tmp_path / "data", files), tmp_path / "out")
    found = Page(out.read_text(encoding="utf-8"))
    for text in (
        "4 have none and get the empty one. 1 has a mask. 2 have a centre of interest.",
        "Masks and centres of interest 3 of those",
        "64×64, masked",
        ", with a focus",
    ):
        assert text in found.text, text
    shown = {
        row["path"]: np.array(Image.open(io.BytesIO(thumbnails._make(open_source(str(tmp_path / "data")), row, 10**6))), int)
        for row in rows(tmp_path / "out/images.parquet")
    }  # fmt: skip
    assert shown["plain.png"].min() > 250
    assert shown["masked.png"][:, 50:].min() > 240 and (shown["masked.png"][:, :40, 1] < 140).all()
    yellow = {name: (image[..., 2] < 120) & (image[..., 0] > 150) for name, image in shown.items()}
    assert yellow["point.png"][46:50, 46:50].any() and not yellow["point.png"][:30].any()
    assert yellow["box.png"][48, 22:28].any() and not yellow["box.png"][40:56, 40:56].any()
    assert not yellow["plain.png"].any()


@pytest.mark.parametrize("alpha", [255, 0])
def test_an_empty_mask_file_is_a_reason_and_no_alpha_mask(tmp_path, alpha):
    """Before: the picture was taken for one that had been replaced, and the stage failed."""
    file = io.BytesIO()
    Image.new("RGBA", (96, 96), (255, 255, 255, alpha)).save(file, "PNG")
    files = {"a.png": file.getvalue(), "a.mask.png": b"", "b.png": picture(1), "c.png": picture(2)}
    write(write_folder(tmp_path / "data", files), tmp_path / "out")
    (row,) = [row for row in rows(tmp_path / "out/images.parquet") if row["path"] == "a.png"]
    assert "empty" in row["rejected"]
    made = thumbnails._make(open_source(str(tmp_path / "data")), row, 10**6)
    assert np.array(Image.open(io.BytesIO(made))).min() > 250


def test_text_from_outside_is_text_and_nothing_is_loaded(tmp_path):
    found = Page(write(pictures(tmp_path / "data"), tmp_path / "out").read_text(encoding="utf-8"))
    assert len(found.scripts) == 3  # the figures, Plotly and our own
    assert "window.hacked" not in "".join(found.scripts)
    for text in (EVIL, f"{EVIL_NAME}.png", f"evil{EVIL_NAME}.png", f"evil {EVIL_NAME}.txt"):
        assert text in "".join(found.texts), text
    links = [v for _, values in found.tags for key, v in values.items() if key in ("src", "href", "srcset", "action")]
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    policy = next(v["content"] for tag, v in found.tags if v.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_page_is_a_function_of_the_data(tmp_path):
    first = write(pictures(tmp_path / "data"), tmp_path / "a").read_bytes()
    assert write(tmp_path / "data", tmp_path / "b").read_bytes() == first  # with all that the store knows
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    assert write(tmp_path / "moved", tmp_path / "c").read_bytes() == first
    write_folder(tmp_path / "data", {"1.txt": "another"})
    assert write(tmp_path / "data", tmp_path / "d").read_bytes() != first


def test_a_second_page_decodes_nothing(tmp_path, monkeypatch):
    first = write(pictures(tmp_path / "data"), tmp_path / "out").read_bytes()
    monkeypatch.setattr(images, "read", None)
    data_page.write(tmp_path / "out", open_source(str(tmp_path / "data")), "data/images", 10**6, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == first


def test_a_damaged_thumbnail_is_made_anew(tmp_path):
    first = write(pictures(tmp_path / "data"), tmp_path / "out").read_bytes()
    for place in (tmp_path / "store/thumbnails").iterdir():
        kept = place.read_bytes()
        place.unlink()
        place.write_bytes(kept[:40] + b"\0" + kept[41:])
    assert write(tmp_path / "data", tmp_path / "out").read_bytes() == first


def test_few_pictures_are_shown_and_kept_however_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(data_page, "_SHOWN", 5)
    monkeypatch.setattr(thumbnails, "_KEPT", 3)
    found = Page(write(pictures(tmp_path / "data", 30), tmp_path / "out").read_text(encoding="utf-8"))
    assert len(found.images) == 5 + 1 + 1 + 2
    assert len(list((tmp_path / "store/thumbnails").iterdir())) == 3


def test_a_picture_that_was_replaced_is_named(tmp_path):
    write(pictures(tmp_path / "data"), tmp_path / "out")
    shutil.rmtree(tmp_path / "store/thumbnails")
    for file in (tmp_path / "data").glob("*.png"):
        file.write_bytes(picture(7, 50, 50))
    with pytest.raises(SourceError, match="is not the picture that the index read"):
        data_page.write(tmp_path / "out", open_source(str(tmp_path / "data")), "", 10**6, tmp_path / "out/report.html")


def test_long_names_and_texts_are_cut(tmp_path):
    folder = write_folder(tmp_path / "data", {"a.png": picture(1, 64, 64), "a.txt": "x" * 5000, "b.png": b""})
    text = write(folder, tmp_path / "out").read_text(encoding="utf-8")
    assert "x" * 300 + "…" in text and "x" * 301 not in text


# --- numbers, against the plain way of counting


def test_numbers_over_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_ROW_GROUP", 7)
    draw = np.random.default_rng(0)
    sides = draw.integers(40, 150, (60, 2))
    files = {f"{n}.png": picture(n % 50, *map(int, sides[n % 50])) for n in range(60)}  # ten are copies
    texts = {f"{n}.txt": ", ".join(draw.choice(["a", "b", "c", "a"], 3)) for n in range(0, 60, 2)}
    write_folder(tmp_path / "data", files | texts)
    write(tmp_path / "data", tmp_path / "out")
    table = [row for row in rows(tmp_path / "out/images.parquet") if row["rejected"] is None]
    found = read(tmp_path / "out")
    assert (found.used, found.distinct) == (len(table), len({row["image"] for row in table}))
    assert (
        len(table) - found.distinct
        == found.copies.count
        == len({row["path"] for row in table} & set(map("{}.png".format, range(50, 60))))
    )
    assert {(b.width, b.height): b.count for b in found.buckets} == Counter(
        (row["bucket_width"], row["bucket_height"]) for row in table
    )
    for histogram, values in (
        (found.aspects, [np.log2(row["width"] / row["height"]) for row in table]),
        (found.megapixels, [np.log2(row["width"] * row["height"] / 1e6) for row in table]),
    ):
        assert histogram.counts.sum() == len(table) and histogram.counts[0] and histogram.counts[-1]
        assert (histogram.counts == np.histogram(values, histogram.edges)[0]).all()
    enlarged = [max(r["bucket_width"] / r["width"], r["bucket_height"] / r["height"]) > 1 for r in table]
    assert found.enlarged == sum(enlarged)
    captions = rows(tmp_path / "out/captions.parquet")
    assert found.captions == sum(row["text"] != "" for row in captions)
    assert found.without_caption == sum(row["text"] == "" for row in captions)


def test_tags_are_counted_once_a_caption(tmp_path):
    import pyarrow as pa

    tags = data._tags(pa.array(["a, b,a ", "b,c", "a", " d d ,", "only"]))
    assert tags == data.Tags(5, [("a", 2), ("b", 2)])


def test_rare_is_fewer_than_a_quarter_of_an_even_share(tmp_path):
    files = {f"{n}.png": picture(n, 64, 64) for n in range(15)} | {"wide.png": picture(50, 90, 45)}
    files |= {f"tall{n}.png": picture(60 + n, 45, 90) for n in range(2)}
    found = read(write(write_folder(tmp_path / "data", files), tmp_path / "out").parent)
    assert [(b.width, b.height, b.count, b.rare) for b in found.buckets] == [
        (32, 64, 2, False), (64, 64, 15, False), (64, 32, 1, True),
    ]  # fmt: skip  # an even share is 6
    assert found.rare == data.Listed(1, [("64×32", 1)], [["wide.png", "64×32"]])


def test_sets_are_listed_with_what_an_epoch_sees_of_them(tmp_path):
    files = {f"fox/{n}.png": picture(n, 64, 64) for n in range(3)} | {
        f"all/{n}.png": picture(9 + n, 64, 64) for n in range(2)
    }
    sets = "sets: [{folder: fox, repeats: 2.5}, {folder: all, class_images: true, name: <b>}]"
    page = write(write_folder(tmp_path / "data", files | {"fox/0.txt": "a\nb", "sets.yaml": sets}), tmp_path / "out")
    assert read(tmp_path / "out").sets == [data.SetOf("fox", 3, 7.5, False), data.SetOf("<b>", 2, 7.5, True)]
    assert "<b> class pictures 2 7.5" in Page(page.read_text(encoding="utf-8")).text


# --- the command


def settings(tokenizer: Path = ROOT / "data/tokenizer") -> params.Params:
    loaded = params.load(ROOT / "params.yaml")
    return loaded.model_copy(update={"model": loaded.model.model_copy(update={"tokenizer": str(tokenizer)})})


def test_the_command_writes_the_page_of_the_index(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "data/images")
    monkeypatch.chdir(tmp_path)
    said = data_command.write("data/images", settings(tmp_path / "none"), tmp_path / "page.html")
    assert "16 of 19 pictures are used" in said and "in letters" in capsys.readouterr().out
    source = open_source("data/images")
    index(source, tmp_path / "out", buckets(64, 32), 32, 1.25, 2 * 10**8, 1.0, 1)
    data_page.write(tmp_path / "out", source, "data/images", 2 * 10**8, tmp_path / "out/report.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "out/report.html").read_bytes()


def test_the_command_counts_tokens(tmp_path, monkeypatch):
    pictures(tmp_path / "data/images")
    monkeypatch.chdir(tmp_path)
    data_command.write("data/images", settings(), tmp_path / "page.html")
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    tokenizer = Tokenizer(ROOT / "data/tokenizer")
    texts = {(tmp_path / f"data/images/{n}.txt").read_text().strip() for n in range(1, 12)} | {EVIL}
    (bars,) = found.figures["lengths"]["data"]
    assert "Caption lengths (tokens)" in found.text and "data report gives them" not in found.text
    assert sum(bars["y"]) == len(texts) == 7
    longest = max(len(tokenizer(text)) + 2 for text in texts)
    assert abs(bars["x"][-1] - longest) <= bars["width"] / 0.92


def test_the_command_shows_what_is_rejected_when_all_are(tmp_path):
    folder = write_folder(tmp_path / "data", {"a.png": b"no picture", "b.png": picture(1, 8, 8)})
    assert "0 of 2 pictures are used" in data_command.write(str(folder), settings(), tmp_path / "page.html")
    found = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Rejected pictures 2" in found.text and len(found.images) == 1 and not found.figures


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    for words in (["nowhere"], ["empty"]):
        with pytest.raises(SystemExit, match=f"data report: .*{words[0]}"):
            data_command.main([*words, "--out", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()
