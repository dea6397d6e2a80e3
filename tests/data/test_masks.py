"""Masks of pictures: where they stand, what is refused, and what becomes of them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import geometry, memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.masks import OF_ALPHA, content
from pipeline.data.sets import SetsError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import jsonl, name, picture, rows, write_folder, write_tar

P = [picture(number) for number in range(8)]


def mask(seed: int, width: int = 40, height: int = 40) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


M = [mask(number) for number in range(8)]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, alpha_mask: bool = False) -> Summary:
    source = open_source(str(data))
    sets, _ = find(str(data), source)
    return index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets, alpha_mask=alpha_mask)


def found(out: Path) -> dict[str, str | None]:
    """Path of each picture that is used -> its mask."""
    return {row["path"]: row["mask"] for row in rows(out / "images.parquet") if row["rejected"] is None}


def lines(out: Path, file: str) -> dict[str, str]:
    text = (out / file).read_text().splitlines()[1:]
    return {line.split(",")[0]: line.split(",", 1)[1] for line in text}


def test_a_mask_stands_beside_its_picture_and_is_none(tmp_path):
    files = {
        "a.png": P[0],
        "a.mask.png": M[0],
        "a.txt": "one",
        "b.jpg": picture(1, form="JPEG"),
        "b-masklabel.png": M[1],  # OneTrainer's form
        "below/c.png": P[2],
        "below/c.png.MASK.PNG": M[2],
        "d.png": P[3],
        "gone.mask.png": M[4],  # its picture is not there
        "told.mask.png": P[5],  # has a caption: it is a picture
        "told.mask.txt": "a mask of a god",
    }
    out = tmp_path / "out"
    summary = run(write_folder(tmp_path / "data", files), out)
    masks = {"a.png": "a.mask.png", "b.jpg": "b-masklabel.png", "below/c.png": "below/c.png.MASK.PNG"}
    assert found(out) == masks | {"d.png": None, "told.mask.png": None}
    assert summary.masked == 3 and "3 of the used pictures have a mask" in str(summary)
    assert lines(out, "unmatched.csv")["gone.mask.png"] == "mask,no picture of this name"
    names = {row["path"]: row["image"] for row in rows(out / "images.parquet")}
    assert names["d.png"] == name(P[3])  # without a mask as ever
    assert names["a.png"] == content(name(P[0]), name(M[0])) != name(P[0])
    assert names["a.png"][:8] == name(P[0])[:8]  # what is held out does not change with a mask
    captioned = {row["image"] for row in rows(out / "captions.parquet") if row["text"] == "one"}
    assert captioned == {names["a.png"]}


def test_what_metadata_names_is_a_picture(tmp_path):
    files = {"a.png": P[0], "a.mask.png": P[1], "metadata.jsonl": jsonl({"file_name": "a.mask.png", "text": "m"})}
    run(write_folder(tmp_path / "data", files), tmp_path / "out")
    assert found(tmp_path / "out") == {"a.png": None, "a.mask.png": None}


def test_masks_in_tars(tmp_path):
    members = {
        "000.jpg": picture(0, form="JPEG"),
        "000.mask.png": M[0],
        "000.txt": "one",
        "x/photo 1.5.png": P[1],
        "x/photo 1.5.mask.png": M[1],
        "002.png": P[2],
        "002-masklabel.png": M[2],
        "003.png": P[3],
        "gone.mask.png": M[4],
        "told.mask.png": P[5],
        "told.mask.txt": "a mask of a god",
    }
    out = tmp_path / "out"
    run(write_tar(tmp_path / "data/0.tar", members).parent, out)
    masks = {"000.jpg": "000.mask.png", "x/photo 1.5.png": "x/photo 1.5.mask.png", "002.png": "002-masklabel.png"}
    masks |= {"003.png": None, "told.mask.png": None}
    assert found(out) == {f"0.tar!{one}": two and f"0.tar!{two}" for one, two in masks.items()}
    assert lines(out, "unmatched.csv")["0.tar!gone.mask.png"] == "mask,no picture of this name"


def test_a_picture_whose_mask_cannot_be_read_is_rejected_and_says_why(tmp_path):
    bad = {
        "broken": (b"\x89PNG\r\n\x1a\nno", "broken"),
        "empty": (b"", "empty"),
        "short": (mask(0)[:60], "broken: PNG is cut off: its end is missing; get the file again"),
        "huge": (mask(0, 4000, 4000), "too many pixels"),
        "turned": (mask(0, 40, 80), "it is 40×80 and the picture 40×40"),
    }
    files = {f"{word}.png": picture(place) for place, word in enumerate(bad)}
    files |= {f"{word}.mask.png": data for word, (data, _) in bad.items()}
    files |= {"two.png": P[5], "two.mask.png": M[0], "two-masklabel.png": M[1]}
    files |= {"link.png": P[6], "small.png": P[7], "small.mask.png": mask(0, 20, 20)}  # of the same shape
    data = write_folder(tmp_path / "data", files)
    (data / "link.mask.png").symlink_to("nowhere.png")
    out = tmp_path / "out"
    run(data, out)
    assert found(out) == {"small.png": "small.mask.png"}
    reasons = lines(out, "rejected.csv")
    for word, (_, reason) in bad.items():
        assert "mask not read" in reasons[f"{word}.png"] and f"{word}.mask.png: " in reasons[f"{word}.png"]
        assert reason in reasons[f"{word}.png"]
    assert "several masks: two-masklabel.png, two.mask.png; keep one" in reasons["two.png"]
    assert "mask not read: link.mask.png: broken link" in reasons["link.png"]
    assert len(reasons) == 7


def test_copies_with_other_masks_are_other_pictures_and_a_changed_mask_is_seen(tmp_path):
    files = {"a.png": P[0], "a.mask.png": M[0], "b.png": P[0], "b.mask.png": M[1], "c.png": P[0], "d.png": P[0]}
    data, out = write_folder(tmp_path / "data", files | {"d.mask.png": M[0]}), tmp_path / "out"
    summary = run(data, out)
    assert summary.samples == 3 and summary.copies == ["a.png = d.png"]
    write_folder(data, {"b.mask.png": M[0]})
    summary = run(data, out)
    assert summary.samples == 2 and summary.read == 1  # only the mask is read again


def masked_sets(tmp_path, file: str, text: str, more: dict | None = None) -> Path:
    files = {"fox/a.png": P[0], "fox/b.png": P[1], "owl/c.png": P[2], "masks/a.jpg": picture(3, form="JPEG")}
    files |= {"masks/stray.png": M[3], file: text} | (more or {})
    return write_folder(tmp_path / "data", files)


KOHYA = """
[[datasets]]
  [[datasets.subsets]]
  image_dir = "fox"
  conditioning_data_dir = "masks"
  [[datasets.subsets]]
  image_dir = "owl"
"""
OWN = json.dumps({"sets": [{"folder": "fox", "masks": "masks"}, {"folder": "owl"}]})


@pytest.mark.parametrize(("file", "text"), [("dataset.toml", KOHYA), ("sets.yaml", OWN)])
def test_a_set_has_its_masks_in_a_folder(tmp_path, file, text):
    out = tmp_path / "out"
    run(masked_sets(tmp_path, file, text), out)
    assert found(out) == {"fox/a.png": "masks/a.jpg", "fox/b.png": None, "owl/c.png": None}
    alone = lines(out, "unmatched.csv")
    assert alone["masks/stray.png"] == "mask,no picture of this name"
    assert alone["fox/b.png"] == "picture,no mask: none of this name in masks"


def test_masks_that_contradict_each_other_are_refused(tmp_path):
    with pytest.raises(SetsError, match="masks are in 'fox' like its pictures"):
        run(masked_sets(tmp_path, "sets.yaml", json.dumps({"sets": [{"folder": "fox", "masks": "fox"}]})), tmp_path)
    both = {"sets": [{"folder": "fox", "masks": "masks"}]}
    with pytest.raises(SetsError, match="fox/a.png has fox/a.mask.png, masks/a.jpg for a mask; keep one"):
        run(masked_sets(tmp_path, "sets.yaml", json.dumps(both), {"fox/a.mask.png": M[0]}), tmp_path)
    with pytest.raises(SetsError, match="outside of"):
        run(masked_sets(tmp_path, "sets.yaml", json.dumps({"sets": [{"folder": "fox", "masks": ".."}]})), tmp_path)
    data = write_tar(tmp_path / "tars/0.tar", {"a.png": P[0]}).parent
    write_folder(data, {"sets.yaml": json.dumps({"sets": [{"folder": ".", "masks": "0.tar"}]})})
    with pytest.raises(SetsError, match="key.mask.png"):
        run(data, tmp_path)


def transparent(seed: int, opaque: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    if opaque:
        pixels[..., 3] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_the_alpha_channel_is_a_mask_where_it_is_wanted(tmp_path):
    files = {"a/clear.png": transparent(0), "a/opaque.png": transparent(1, True), "a/plain.png": P[0]}
    files |= {"b/own.png": transparent(2), "b/own.mask.png": M[0], "c/clear.png": transparent(3)}
    data, out = write_folder(tmp_path / "data", files), tmp_path / "out"
    run(data, out)
    assert set(found(out).values()) == {None, "b/own.mask.png"}
    run(data, out, alpha_mask=True)
    plain = {"a/opaque.png": None, "a/plain.png": None, "b/own.png": "b/own.mask.png"}
    assert found(out) == plain | {"a/clear.png": "", "c/clear.png": ""}
    images = {row["path"]: row["image"] for row in rows(out / "images.parquet")}
    assert images["a/clear.png"] == content(name(files["a/clear.png"]), OF_ALPHA)
    sets = [{"folder": "a", "alpha_mask": True}, {"folder": "b"}, {"folder": "c"}]
    run(write_folder(data, {"sets.yaml": json.dumps({"sets": sets})}), out)
    assert found(out) == plain | {"a/clear.png": "", "c/clear.png": None}
    sets.append({"folder": ".", "alpha_mask": False})
    with pytest.raises(SetsError, match="alpha_mask is not the same"):
        run(write_folder(data, {"sets.yaml": json.dumps({"sets": sets})}), out)


def plain_mask(mask: np.ndarray, prepared: geometry.Prepared) -> np.ndarray:
    """The mask enlarged to the resized picture, cropped as it was, and averaged over 8 × 8 pixels, as float64."""
    height, width = prepared.resized_size
    rows, columns = (np.arange(16 * n) * m // (16 * n) for n, m in zip((height, width), mask.shape))
    large = mask[rows][:, columns].astype(np.float64)  # 16 points to a pixel of the resized picture
    top, left = (16 * edge for edge in prepared.crop_top_left)
    target = prepared.target_size
    part = large[top : top + 16 * target[0], left : left + 16 * target[1]]
    return part.reshape(target[0] // 8, 128, target[1] // 8, 128).mean((1, 3))


@pytest.mark.parametrize("size", [(100, 260), (50, 130), (33, 40)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_mask_is_cropped_and_resized_with_its_picture(size, crop):
    rng = np.random.default_rng(0)
    pixels, values = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 2, size, np.uint8) * 255
    for smaller in (1, 2):
        given = values[::smaller, ::smaller] if all(side % smaller == 0 for side in size) else values
        prepared = geometry.fit(pixels, (64, 96), crop, "lanczos", geometry.generator(b"m" * 16), given)
        assert prepared.mask.shape == (12, 8) and prepared.mask.dtype == np.uint8
        assert np.abs(plain_mask(given, prepared) - prepared.mask).max() < 4  # a point in 16 lies on an edge
        assert (geometry.mirror(prepared).mask == prepared.mask[:, ::-1]).all()
        alone = geometry.fit(pixels, (64, 96), crop, "lanczos", geometry.generator(b"m" * 16))
        assert alone.mask is None and (alone.pixels == prepared.pixels).all()


def test_a_mask_is_a_grey_value_over_black_or_the_alpha_channel():
    colours = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    colours.paste((255, 255, 255, 0), (0, 0, 16, 32))
    stream = io.BytesIO()
    colours.save(stream, "PNG")
    wanted = np.repeat([[0, 0, 255, 255]], 4, 0)
    for data, given in ((picture(0, 32, 32), stream.getvalue()), (stream.getvalue(), b"")):
        prepared = geometry.prepare(data, (32, 32), "center", "lanczos", (0, 0, 0), mask=given)
        assert (prepared.mask == wanted).all()
