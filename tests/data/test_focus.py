"""Centres of interest: how tables say them, which crops keep them in sight, and the rows that they make."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.cache.building import engine, latents
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.reader import Reader
from pipeline.data import __main__ as command
from pipeline.data import focus, geometry, memo, tables
from pipeline.data.captions import CaptionError
from pipeline.data.index import index
from pipeline.data.part import SourceError
from pipeline.data.said import said
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from pipeline.stage import StageError
from tests.cache.cache_samples import TEXT_FINGERPRINT, caption, read_all, write_cache
from tests.data.data_sets import jsonl, name, picture, rows, write_folder, write_parquet, write_tar
from tests.training.training_samples import params

WIDE = [picture(number, 200, 64) for number in range(8)]  # to 128x32 or so: only the left edge is free


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, **how) -> Summary:
    return index(open_source(str(data), **how), out, [(64, 64)], 16, None, 10**6, 1.0, 1)


def found(out: Path) -> dict[str, list[float] | None]:
    used = [row for row in rows(out / "images.parquet") if row["rejected"] is None]
    return {row["path"].rpartition("!")[2]: row["focus"] and [round(edge, 4) for edge in row["focus"]] for row in used}


# how it is said


@pytest.mark.parametrize(
    "row, wanted",
    [
        ({}, None),
        ({"focus": None, "bbox": []}, None),
        ({"focus": ""}, None),
        ({"focus": [0.5, 0.25]}, (0.5, 0.25, 0.5, 0.25)),
        ({"focus": [0.1, 0.2, 0.3, 1]}, (0.1, 0.2, 0.3, 1)),
        ({"focus": [100, 20]}, (100, 20, 100, 20)),
        ({"focus": "0.5, 0.25"}, (0.5, 0.25, 0.5, 0.25)),
        ({"focus": "[10, 20, 30, 40]"}, (10, 20, 30, 40)),
        ({"focus": [-0.1, 0.5]}, (-0.1, 0.5, -0.1, 0.5)),
        ({"focus": [2**40, 1]}, (2**40, 1, 2**40, 1)),
        ({"bbox": [0.5, 0.5, 0.6, 0.25]}, (0.5, 0.5, 1.1, 0.75)),
        ({"focus": "10;20"}, (10, 20, 10, 20)),
        ({"bbox": [10, 20, 30, 40]}, (10, 20, 40, 60)),
        ({"bbox": [0.5, 0.5, 0.5, 0.25]}, (0.5, 0.5, 1, 0.75)),
        ({"bbox": [[10, 20, 30, 40], [2, 30, 4, 5]]}, (2, 20, 40, 60)),
        ({"bbox": "[[10, 20, 30, 40]]"}, (10, 20, 40, 60)),
        ({"bbox": [10, 20, 30, 40], "focus": [0.5, 0.5]}, (0.5, 0.5, 0.5, 0.5)),
    ],
)
def test_forms(row, wanted):
    found = said(row).focus
    assert found == wanted if wanted is None else found[:4] == pytest.approx(wanted)
    assert wanted is None or found.in_pixels == (max(wanted) > 2)


@pytest.mark.parametrize(
    "row",
    [{"focus": value} for value in ([1], [1, 2, 3], [1, "2"], [True, 2], [float("nan"), 1], [float("inf"), 1],
     [0.5, 0.5, 0.4, 0.6], [0.5, 0.6, 0.6, 0.5], "x", "1", "[1, 2", {"x": 1}, 7, [[1, 2]], [10**400, 1], "[" * 10_000)]
    + [{"bbox": value} for value in ([1, 2], [1, 2, -3, 4], [[1, 2, 3, 4], [1, 2]], [[]], [[1, 2, 3, 4], 5],
                                     [[1, 2, 3, 4]] * 1001)],
)  # fmt: skip
def test_what_is_none_is_said(row):
    (column,) = row
    with pytest.raises(ValueError, match=f"found {column} .*, wanted .* in shares of its width and height"):
        said(row)


def test_every_form_of_metadata(tmp_path):
    files = {f"{place}.png": data for place, data in enumerate(WIDE)}
    lines = [{"file_name": "0.png", "text": "a", "focus": [0.75, 0.5]}, {"file_name": "1.png", "text": "b"},
             {"file_name": "2.png", "text": "c", "bbox": [150, 0, 50, 64]}]  # fmt: skip
    wanted = {"0.png": [0.75, 0.5, 0.75, 0.5], "1.png": None, "2.png": [0.75, 0.0, 1.0, 1.0]}
    three = {name: files[name] for name in wanted}
    data = write_folder(tmp_path / "jsonl", three | {"metadata.jsonl": jsonl(*lines)})
    summary = run(data, tmp_path / "out")
    assert found(tmp_path / "out") == wanted and summary.focused == 2
    assert "2 of the used pictures have a centre of interest" in str(summary)
    csv = 'file_name,text,focus,bbox\n0.png,a,"0.75,0.5",\n1.png,b,,\n2.png,c,,"[150, 0, 50, 64]"\n'
    run(write_folder(tmp_path / "csv", three | {"metadata.csv": csv}), tmp_path / "out")
    assert found(tmp_path / "out") == wanted
    beside = {"0.json": '{"focus": [0.75, 0.5]}', "2.json": '{"bbox": [150, 0, 50, 64]}', "1.json": '{"label": "dog"}'}
    summary = run(write_folder(tmp_path / "sidecar", three | beside), tmp_path / "out")
    assert found(tmp_path / "out") == wanted and summary.others == ["1.json"]
    too_large = beside | {"1.json": json.dumps({"focus": [0.1, 0.1], "workflow": "x" * (1 << 20)})}
    summary = run(write_folder(tmp_path / "large", three | too_large), tmp_path / "out")
    assert found(tmp_path / "out") == wanted and summary.others == ["1.json"]
    members = {name: text for line in lines for name, text in (
        (line["file_name"], files[line["file_name"]]), (f"{line['file_name'][0]}.json", json.dumps(line)))}  # fmt: skip
    run(write_tar(tmp_path / "tars/0.tar", members), tmp_path / "out")
    assert found(tmp_path / "out") == wanted
    columns = {"image": list(three.values()), "text": ["a", "b", "c"], "focus": [[0.75, 0.5], None, None],
               "bbox": [None, None, [150, 0, 50, 64]]}  # fmt: skip
    run(write_parquet(tmp_path / "x.parquet", columns), tmp_path / "out")
    assert list(found(tmp_path / "out").values()).count(None) == 1
    assert sorted(map(str, found(tmp_path / "out").values())) == sorted(map(str, wanted.values()))
    counts = command.examine(str(tmp_path / "jsonl"), params(), 4)
    assert counts["focused"] == 2


def test_errors_name_the_row(tmp_path):
    bad = {"file_name": "a.png", "text": "x", "focus": [1]}
    data = write_folder(tmp_path / "data", {"a.png": WIDE[0], "metadata.jsonl": jsonl(bad)})
    with pytest.raises(CaptionError, match=r"metadata.jsonl:1: found focus '\[1\]', wanted \[x, y\] or"):
        run(data, tmp_path / "out")
    columns = {"image": WIDE[:2], "text": ["a", "b"], "bbox": [[0, 0, 1, 1], [1, 2, 3]]}
    with pytest.raises(CaptionError, match=r"x.parquet#1: found bbox '\[1, 2, 3\]'"):
        run(write_parquet(tmp_path / "x.parquet", columns), tmp_path / "out")
    members = {"a.png": WIDE[0], "a.json": '{"text": "x", "focus": "no"}', "b.png": WIDE[1]}
    run(write_tar(tmp_path / "tars/0.tar", members), tmp_path / "out")
    assert "caption not read: 0.tar!a.json: found focus" in (tmp_path / "out/rejected.csv").read_text()
    files = {"a.png": WIDE[0], "a.json": '{"focus": [3]}', "b.png": WIDE[1], "b.json": '{"focus": [250, 3]}'}
    files |= {"c.png": WIDE[2], "c.json": "[not JSON", "d.png": WIDE[3], "d.json": "[1]"}
    summary = run(write_folder(tmp_path / "sidecar", files), tmp_path / "out")
    rejected = (tmp_path / "out/rejected.csv").read_text()
    assert "focus not read: a.json: found focus '[3]'" in rejected
    assert "focus outside: the point 250, 3 in pixels, and the upright picture is 200×64" in rejected
    assert "focus not read: c.json: not JSON: Expecting value" in rejected and summary.others == ["d.json"]
    unmatched = (tmp_path / "out/unmatched.csv").read_text()
    assert "a.json,file,not read: a.json: found focus" in unmatched.replace('"', "")
    assert "c.json,file,not read: c.json: not JSON: " in unmatched.replace('"', "")
    assert set(found(tmp_path / "out")) == {"d.png"}
    two = [{"file_name": "a.png", "text": text, "focus": [0.5, place]} for text, place in (("x", 0.5), ("y", 0.6))]
    data = write_folder(tmp_path / "two", {"a.png": WIDE[0], "metadata.jsonl": jsonl(*two)})
    with pytest.raises(
        SourceError, match=r"metadata.jsonl:2: 'a.png' has the point 0.5, 0.6 in shares of .* in a row before"
    ):
        run(data, tmp_path / "out")
    write_folder(data, {"metadata.jsonl": jsonl(two[0]), "a.json": '{"focus": [0.1, 0.1]}', "b.png": WIDE[1]})
    run(data, tmp_path / "out")
    assert "a.json has another than the table; keep one" in (tmp_path / "out/rejected.csv").read_text()


def test_pixels_and_shares_are_one_content_and_another_focus_another(tmp_path):
    def content(value) -> bytes:
        line = {"file_name": "a.png", "text": "a"} | ({} if value is None else {"focus": value})
        data = write_folder(tmp_path / "data", {"a.png": WIDE[0], "metadata.jsonl": jsonl(line)})
        run(data, tmp_path / "out")
        return rows(tmp_path / "out/images.parquet")[0]["image"]

    plain, shares, pixels, other = map(content, (None, [0.25, 0.5], [50, 32], [0.26, 0.5]))
    assert plain == name(WIDE[0]) and shares == pixels and len({plain, shares, other}) == 3
    assert shares[:8] == other[:8] == plain[:8]  # what is held out does not change


def test_upright_is_how_it_is_seen(tmp_path):
    """A camera's picture that is stored lying has its centre where a viewer shows it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(0, 200, 64))).save(file, "JPEG", exif=exif)
    line = {"file_name": "a.jpg", "text": "a", "focus": [32, 150]}
    run(write_folder(tmp_path / "data", {"a.jpg": file.getvalue(), "metadata.jsonl": jsonl(line)}), tmp_path / "out")
    assert found(tmp_path / "out") == {"a.jpg": [0.5, 0.75, 0.5, 0.75]}


# which crops


EDGE = st.floats(0, 1, width=32)


@given(st.tuples(EDGE, EDGE).map(sorted), st.integers(1, 300), st.integers(0, 300))
def test_crops_keep_the_focus_in_sight(both, side, free):
    """By trying all of them."""
    resized = side + free
    middle, low, high = focus.edge(tuple(both), side, resized)
    begin, end = (share * resized for share in both)
    every = range(free + 1)
    off = [abs(edge + side / 2 - (begin + end) / 2) for edge in every]
    assert off[middle] == pytest.approx(min(off), abs=0.5 + 1e-6)
    holding = [edge for edge in every if edge <= begin and end <= edge + side]
    inside = [edge for edge in every if begin <= edge and edge + side <= end]
    assert 0 <= low <= high <= free
    if holding:
        assert [low, high] == [holding[0], holding[-1]] and low <= middle <= high
    elif inside:
        assert inside[0] - 1 <= low and high <= inside[-1] + 1


def test_without_a_focus_crops_are_as_ever():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 200, 3), np.uint8)
    plain = geometry.fit(pixels, (64, 64), "center", "area")
    assert plain.crop_top_left == (0, (plain.resized_size[1] - 64) // 2)
    same = geometry.fit(pixels, (64, 64), "center", "area", focus=(0.5, 0.5, 0.5, 0.5))
    assert abs(same.crop_top_left[1] - plain.crop_top_left[1]) <= 1


def bright(left: int, right: int, height: int = 64, width: int = 200) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, left:right] = 255
    return pixels


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("left", [0, 10, 90, 160, 180])
def test_a_box_is_in_the_crop_with_its_mask_and_mirrored(crop, left):
    pixels, box = bright(left, left + 20), (left / 200, 0.2, (left + 20) / 200, 0.9)
    seen = set()
    for seed in range(20 if crop == "random" else 1):
        draw = geometry.generator(bytes([seed] * 16))
        prepared = geometry.fit(pixels, (64, 64), crop, "area", draw, pixels[:, :, 0], box)
        top, edge = prepared.crop_top_left
        seen.add(edge)
        assert top == 0 and edge <= left and left + 20 <= edge + 64
        lit = prepared.pixels[0, :, 0] > 127
        assert lit.sum() == 20 and np.flatnonzero(lit)[0] == left - edge
        assert prepared.mask.sum() == pytest.approx(8 * 255 * 20 / 8, rel=0.02)  # all of it is in sight
        mirrored = geometry.mirror(prepared)
        assert mirrored.crop_top_left == (0, 200 - 64 - edge)
        assert np.flatnonzero(mirrored.pixels[0, :, 0] > 127)[0] == 64 - (left - edge) - 20
    if crop == "center":
        assert seen == {min(max(left + 10 - 32, 0), 136)}
    else:
        assert len(seen) > 5 if 0 < left < 180 else seen == {0 if left == 0 else 136}  # at an edge there is but one


# the rows


HOW = Preparation("mean", "center", 1, True, "area", (255, 255, 255))


def cache(data: Path, root: Path, how: Preparation = HOW) -> tuple[engine.Report, dict[bytes, list[dict]]]:
    """By picture its rows, the plain one first."""
    run(data, root / "index")
    job = latents.make_job(root / "index/images.parquet", open_source(str(data)), how.fingerprint, how, vae, 3, 2)
    report = engine.build(job, root / "latents")
    found: dict[bytes, list[dict]] = {}
    for path in sorted((root / "latents").iterdir()):
        for row in read_all(path):
            found.setdefault(row["image"], []).append(row)
    return report, {image: sorted(own, key=lambda row: (row["flip"], row["crop"])) for image, own in found.items()}


def vae():
    return lambda pixels: np.concatenate([pixels[:, :, ::8, ::8]] * 3, axis=1)[:, :8]


def test_a_focus_encodes_its_picture_anew_with_its_own_crop_numbers(tmp_path):
    files = {"a.png": WIDE[0], "b.png": WIDE[1]}
    data = write_folder(tmp_path / "data", files)
    report, before = cache(data, tmp_path)
    assert report.encoded == 4 and {row["crop_left"] for own in before.values() for row in own} == {68}
    write_folder(data, {"a.json": '{"focus": [0.2, 0.5]}'})
    report, after = cache(data, tmp_path)
    assert report.encoded == 2 and after[name(WIDE[1])] == before[name(WIDE[1])]
    ((focused, own),) = [(image, own) for image, own in after.items() if image not in before]
    assert [(row["crop_top"], row["crop_left"]) for row in own] == [(0, 8), (0, 200 - 64 - 8)]
    names = {row["path"]: row["image"] for row in rows(tmp_path / "index/images.parquet")}
    assert names == {"a.png": focused, "b.png": name(WIDE[1])}
    (data / "a.json").unlink()
    report, again = cache(data, tmp_path)
    assert report.encoded == 0 and again == before
    # what training is told of the crop
    texts = [caption("")]
    write_cache(tmp_path / "text", shards.TEXT, texts, TEXT_FINGERPRINT)
    write_folder(data, {"a.json": '{"focus": [0.2, 0.5]}'})
    cache(data, tmp_path)
    with Reader(tmp_path / "latents", tmp_path / "text", tmp_path / "index/samples.parquet") as reader:
        place = [one.tobytes() for one in reader.names].index(focused)
        told = {tuple(reader.read(np.array([place]), epoch, 0).time_ids[0]) for epoch in range(20)}
    assert told == {(64, 200, 0, 8, 64, 64), (64, 200, 0, 128, 64, 64)}


def test_random_crops_of_one_picture_all_hold_it(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": WIDE[0], "a.json": '{"focus": [150, 10, 190, 60]}'})
    _, found = cache(data, tmp_path, Preparation("mean", "random", 6, True, "area", (0, 0, 0)))
    (own,) = found.values()
    plain, mirrored = own[:6], own[6:]
    lefts = [row["crop_left"] for row in plain]
    assert len(set(lefts)) > 1 and all(left <= 150 and 190 <= left + 64 for left in lefts)
    assert [row["crop_left"] for row in mirrored] == [200 - 64 - left for left in lefts]


def test_a_changed_focus_is_not_passed_over(tmp_path):
    """The index's row says which picture with which focus; another one's latents never come under its name."""
    data = write_folder(tmp_path / "data", {"a.png": WIDE[0], "a.json": '{"focus": [0.2, 0.5]}'})
    run(data, tmp_path / "index")
    table = rows(tmp_path / "index/images.parquet")
    table[0]["focus"] = [0.5, 0.5, 0.5, 0.5]
    pq.write_table(pa.Table.from_pylist(table, schema=tables.IMAGES), tmp_path / "index/images.parquet")
    job = latents.make_job(tmp_path / "index/images.parquet", open_source(str(data)), HOW.fingerprint, HOW, vae, 3, 2)
    with pytest.raises(StageError, match="is not the one that the index read"):
        engine.build(job, tmp_path / "latents")


def test_a_box_of_rounded_numbers_is_cut_to_the_edge(tmp_path):
    """COCO's annotations have many whose sums lie a little outside."""
    boxes = {"a": [172.5, 3.2, 27.8, 61.3], "b": [0.4, 0.2, 0.6001, 0.8], "c": [172.5, 3.2, 29.6, 60]}
    rows = [{"file_name": f"{name}.png", "text": name, "bbox": box} for name, box in boxes.items()]
    pictures = {f"{name}.png": WIDE[number] for number, name in enumerate(boxes)}
    run(write_folder(tmp_path / "data", pictures | {"metadata.jsonl": jsonl(*rows)}), tmp_path / "out")
    got = found(tmp_path / "out")
    assert got["a.png"] == pytest.approx([172.5 / 200, 3.2 / 64, 1, 1]) and got["b.png"] == pytest.approx(
        [0.4, 0.2, 1, 1]
    )
    assert (
        "c.png" not in got
        and "focus outside: the box (left, top, right, bottom) 172.5, 3.2, 202.1, 63.2 in pixels, and"
        in (tmp_path / "out/rejected.csv").read_text()
    )


@pytest.mark.parametrize("form", ["jsonl", "csv", "tar", "parquet", "json"])
@pytest.mark.parametrize(
    "column, value, said",
    [
        ("focus", [-0.2, 0.5], "the point -0.2, 0.5 in shares of width and height, and the upright picture is 200×64"),
        ("focus", [-20, 5], "the point -20, 5 in pixels, and the upright picture is 200×64"),
        ("focus", [2**40, 5], "the point 1.099511628e+12, 5 in pixels"),
        ("bbox", [0.8, 0.1, 0.5, 0.2], "the box (left, top, right, bottom) 0.8, 0.1, 1.3, 0.3 in shares"),
        ("bbox", [180, -30, 10, 20], "the box (left, top, right, bottom) 180, -30, 190, -10 in pixels"),
        ("bbox", [[10, 10, 5, 5], [190, 10, 20, 5]], "the box (left, top, right, bottom) 10, 10, 210, 15 in pixels"),
    ],
)
def test_a_focus_outside_rejects_its_picture_alone(tmp_path, form, column, value, said):
    """On whatever side and in whatever unit it is."""
    value = [list(map(float, one)) if isinstance(one, list) else float(one) for one in value]
    line, text = {"file_name": "a.png", "text": "x", column: value}, json.dumps(value)
    data, two = tmp_path / "data", {"a.png": WIDE[0], "b.png": WIDE[1]}
    if form == "jsonl":
        write_folder(data, two | {"metadata.jsonl": jsonl(line, {"file_name": "b.png", "text": "y"})})
    elif form == "csv":
        write_folder(data, two | {"metadata.csv": f'file_name,text,{column}\na.png,x,"{text}"\nb.png,y,\n'})
    elif form == "json":
        write_folder(data, two | {"a.json": json.dumps({column: value})})
    elif form == "tar":
        write_tar(data / "0.tar", {"a.png": WIDE[0], "a.json": json.dumps(line), "b.png": WIDE[1], "b.txt": "y"})
    else:
        data = write_parquet(tmp_path / "x.parquet", {"image": WIDE[:2], "text": ["x", "y"], column: [value, None]})
    summary = run(data, tmp_path / "out")
    assert summary.reasons == {"focus outside": 1} and len(found(tmp_path / "out")) == 1
    assert f"focus outside: {said}" in (tmp_path / "out/rejected.csv").read_text()
    assert command.examine(str(data), params(), 4)["focused"] == 1


def test_a_focus_a_little_outside_on_the_near_sides_is_cut_too(tmp_path):
    boxes = {"a": [-0.6, -0.9, 100, 64], "b": [-0.0004, 0.2, 0.5, 0.5], "c": [-1.2, 0, 100, 64]}
    lines = [{"file_name": f"{name}.png", "text": name, "bbox": box} for name, box in boxes.items()]
    pictures = {f"{name}.png": WIDE[number] for number, name in enumerate(boxes)}
    run(write_folder(tmp_path / "data", pictures | {"metadata.jsonl": jsonl(*lines)}), tmp_path / "out")
    got = found(tmp_path / "out")
    assert got.keys() == {"a.png", "b.png"} and got["a.png"][:2] == [0, 0] and got["b.png"][:2] == [0, 0.2]
