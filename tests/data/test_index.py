import csv
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data import captions, images, memo, tables
from pipeline.data.buckets import buckets, choose
from pipeline.data.examine import Examiner
from pipeline.data.folder import Folder
from pipeline.data.index import index
from pipeline.data.near import perceptual_hash
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from pipeline.stage import StageError
from tests.data import odd_pictures
from tests.data.data_sets import contents, jsonl, name, picture, rows, write_folder, write_parquet, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as pipeline/data/images.py does outside pytest
ROOT = Path(__file__).resolve().parents[2]
SIZES = buckets(64, 32)
A, B, C, D = picture(1), picture(2, 100, 40), picture(3, 40, 90), picture(4)
BROKEN = A[:500]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """A store for each test, whose memo trusts files at once."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(
    data: Path,
    out: Path,
    sizes=SIZES,
    min_side=16,
    max_enlargement=None,
    max_pixels=odd_pictures.MAX_PIXELS,
    max_rejected=1.0,
    workers=1,
    min_bucket=1,
):
    return index(
        open_source(str(data)), out, sizes, min_side, max_enlargement, max_pixels, max_rejected, workers, min_bucket
    )


def texts(out: Path) -> list[tuple]:
    """(image, text, text_2) in order."""
    return [(row["image"], row["text"], row["text_2"]) for row in rows(out / "captions.parquet")]


# --- what is in the files


def test_images(tmp_path):
    out = tmp_path / "out"
    write_folder(tmp_path / "data", {"a.png": A, "d/b.png": B, "c.png": C, "copy.png": A, "broken.png": BROKEN})
    summary = run(tmp_path / "data", out)
    found = rows(out / "images.parquet")
    assert found == sorted(found, key=lambda row: (row["image"], row["path"]))
    by_path = {row.pop("path"): row for row in found}

    def used(data, size, bucket):
        names = ("width", "height", "bucket_width", "bucket_height")
        phash = perceptual_hash(images.decode(data, (0, 0, 0)))
        return {
            "image": name(data),
            **dict(zip(names, size + bucket)),
            "rejected": None,
            "phash": phash,
        } | dict.fromkeys(("mask", "focus", "views"))

    reason = by_path["broken.png"]["rejected"]
    empty = dict.fromkeys(("width", "height", "bucket_width", "bucket_height"))
    assert by_path == {
        "a.png": used(A, (40, 40), (64, 64)),
        "copy.png": used(A, (40, 40), (64, 64)),
        "d/b.png": used(B, (100, 40), (128, 32)),
        "c.png": used(C, (40, 90), (32, 128)),
        "broken.png": {
            "image": name(BROKEN),
            **empty,
            "rejected": reason,
            "phash": None,
            "mask": None,
            "focus": None,
            "views": None,
        },
    }
    assert reason.startswith("broken: PNG")
    with open(out / "rejected.csv", newline="") as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["broken.png", reason]]
    assert pq.read_schema(out / "images.parquet").equals(tables.IMAGES)
    assert (summary.files, summary.used, summary.read) == (5, 4, 5)
    assert summary.reasons == {"broken": 1} and summary.buckets == {(64, 64): 2, (128, 32): 1, (32, 128): 1}


def test_captions(tmp_path):
    lines = jsonl(
        {"file_name": "a.png", "text": ["two", "one"]},
        {"file_name": "copy.png", "text": "three", "text_2": "drei"},
        {"file_name": "copy.png", "text": "one"},
        {"file_name": "b.png", "text": "one"},
        {"file_name": "broken.png", "text": "of a picture that is rejected"},
    )
    pictures = {"a.png": A, "copy.png": A, "b.png": B, "c.png": C, "d.png": D, "copy of d.png": D, "broken.png": BROKEN}
    write_folder(tmp_path / "data", pictures | {"metadata.jsonl": lines, "d.txt": "four", "c.txt": "\n"})
    summary = run(tmp_path / "data", tmp_path / "out")
    wanted = {
        name(A): {("one", None), ("two", None), ("three", "drei")},  # of both files with this content
        name(B): {("one", None)},
        name(C): {("", None)},
        name(D): {("four", None)},  # its copy has none, the content has
    }
    found = texts(tmp_path / "out")
    assert len(found) == len(set(found))
    assert {image: {(t, t_2) for i, t, t_2 in found if i == image} for image in {row[0] for row in found}} == wanted
    table = rows(tmp_path / "out/captions.parquet")
    assert [(row["image"], row["caption"]) for row in table] == sorted((row["image"], row["caption"]) for row in table)
    assert all(row["caption"] == captions.name(row["text"], row["text_2"]) for row in table)
    assert pq.read_schema(tmp_path / "out/captions.parquet").equals(tables.CAPTIONS)
    assert summary.without_caption == 1 and summary.captions == 5  # as in the table, without the empty one


def test_all_forms_of_a_data_set_give_the_same_pictures_and_captions(tmp_path):
    write_folder(tmp_path / "hf", {"0.png": A, "1.png": B, "metadata.csv": "file_name,text\n0.png,x\n1.png,y\n"})
    write_folder(tmp_path / "kohya", {"0.png": A, "1.png": B, "0.txt": "x", "1.caption": "y\n"})
    write_tar(tmp_path / "tars/a.tar", {"0.png": A, "0.txt": "x"})
    write_tar(tmp_path / "tars/b.tar", {"1.png": B, "1.json": '{"text": "y"}'})
    write_parquet(tmp_path / "parquet/a.parquet", {"image": [{"bytes": A}, {"bytes": B}], "text": ["x", "y"]})
    for form in ("hf", "kohya", "tars", "parquet"):
        run(tmp_path / form, tmp_path / "out" / form)
    files = {form: contents(tmp_path / "out" / form) for form in ("hf", "kohya", "tars", "parquet")}
    assert len({file["captions.parquet"] for file in files.values()}) == 1
    tables_ = [pq.read_table(tmp_path / "out" / form / "images.parquet").drop_columns("path") for form in files]
    assert all(table.equals(tables_[0]) for table in tables_)
    source = open_source(str(tmp_path / "tars"))
    assert {name(source.read(row["path"])) for row in rows(tmp_path / "out/tars/images.parquet")} == {name(A), name(B)}


def test_odd_pictures(tmp_path):
    """The hostile corpus as one data set, in two workers."""
    odd = {picture.name: picture for picture in odd_pictures.write(tmp_path / "data")}
    summary = run(tmp_path / "data", tmp_path / "out", workers=2)
    found = {row["path"]: row for row in rows(tmp_path / "out/images.parquet")}
    assert set(found) == set(odd)
    for path, row in found.items():
        kind = (row["rejected"] or "").partition(":")[0]
        assert kind == odd[path].rejected, (path, row["rejected"])
        assert (row["bucket_width"] is None) == (row["rejected"] is not None)
        if odd[path].quadrants and path != "long ratio.png":
            assert (row["width"], row["height"]) == (odd_pictures.WIDTH, odd_pictures.HEIGHT), path
    assert found["long ratio.png"]["bucket_width"] == 128
    assert found["tiny.png"]["rejected"] == "too small: 8×8, a side is under 16"
    assert (found["tiny.png"]["width"], found["tiny.png"]["height"]) == (8, 8)
    assert summary.reasons == Counter(picture.rejected for picture in odd.values() if picture.rejected)
    assert summary.profiles_ignored == sum(picture.profile_ignored for picture in odd.values())
    with open(tmp_path / "out/rejected.csv", newline="", encoding="utf-8") as file:
        listed = list(csv.reader(file))[1:]
    assert listed == sorted([path, row["rejected"]] for path, row in found.items() if row["rejected"])


# --- a function of the data set and the params alone


def many(folder: Path, order: int = 1) -> Path:
    files = {f"{number % 7}/{number}.png": picture(number % 50) for number in range(60)}
    files |= {f"{number % 7}/{number}.txt": f"caption {number}\nsecond {number % 3}" for number in range(0, 60, 2)}
    return write_folder(folder, dict(list(files.items())[::order]) | {"x.png": BROKEN})


def test_bytes_do_not_depend_on_order_workers_place_or_memo(tmp_path):
    first = many(tmp_path / "data")
    run(first, tmp_path / "out")
    wanted = contents(tmp_path / "out")
    tables = {f"{name}.parquet" for name in ("images", "captions", "samples")}
    assert set(wanted) == tables | {"rejected.csv", "unmatched.csv", "copies.csv", "near.csv"}
    assert run(first, tmp_path / "out").read == 0
    assert contents(tmp_path / "out") == wanted
    for number, workers in enumerate((2, 3)):
        again = many(tmp_path / f"again {number}", order=-1)
        assert run(again, tmp_path / f"out {number}", workers=workers).read == 61
        assert contents(tmp_path / f"out {number}") == wanted


def test_an_edited_caption_leaves_the_images(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A, "a.txt": "x", "b.png": B, "b.txt": "y"})
    run(data, tmp_path / "out")
    before = contents(tmp_path / "out")
    write_folder(data, {"a.txt": "z"})
    assert run(data, tmp_path / "out").read == 0
    after = contents(tmp_path / "out")
    assert (
        after["images.parquet"] == before["images.parquet"] and after["captions.parquet"] != before["captions.parquet"]
    )


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_an_edited_caption_inside_a_container_leaves_the_images(tmp_path, form):
    for text in ("x", "a much longer caption, which moves what follows it"):
        if form == "tar":
            write_tar(tmp_path / "data/a.tar", {"0.txt": text * 50, "0.png": A, "1.png": B})
        else:
            write_parquet(tmp_path / "data/a.parquet", {"image": [A, B], "text": [text, "y"]})
        run(tmp_path / "data", tmp_path / "out" / text)
    one, two = (contents(folder) for folder in sorted((tmp_path / "out").iterdir()))
    assert one["images.parquet"] == two["images.parquet"] and one["captions.parquet"] != two["captions.parquet"]


def test_choice_of_buckets_in_the_table_is_choose(tmp_path):
    sizes = buckets(1024, 64)
    shapes = [(400, 300), (300, 400), (512, 512), (700, 170), (90, 500)]
    write_folder(tmp_path / "data", {f"{n}.bmp": picture(n, *shape, form="BMP") for n, shape in enumerate(shapes)})
    run(tmp_path / "data", tmp_path / "out", sizes=sizes)
    for row in rows(tmp_path / "out/images.parquet"):
        chosen = sizes[choose(np.array([row["width"]]), np.array([row["height"]]), sizes)[0]]
        assert (row["bucket_width"], row["bucket_height"]) == chosen


def test_rare_buckets_are_given_up(tmp_path):
    """And no picture is rejected for it, though it is enlarged more than the bound to cover its new bucket."""
    shapes = 4 * [(64, 64)] + 3 * [(128, 32)] + [(32, 128), (64, 128)]
    write_folder(tmp_path / "data", {f"{n}.bmp": picture(n, *shape, form="BMP") for n, shape in enumerate(shapes)})
    plain = run(tmp_path / "data", tmp_path / "plain", max_enlargement=1.25)
    assert plain.buckets == {(64, 64): 4, (128, 32): 3, (32, 128): 2}
    summary = run(tmp_path / "data", tmp_path / "out", max_enlargement=1.25, min_bucket=3)
    assert summary.buckets == {(64, 64): 6, (128, 32): 3} and summary.used == plain.used == 9
    assert summary.read == 0 and summary.most_enlarged == 2  # 32 to 64
    assert run(tmp_path / "data", tmp_path / "all", min_bucket=100).buckets == {(64, 64): 9}


# --- failures


def test_too_many_rejected(tmp_path):
    data = write_folder(
        tmp_path / "data", {"a.png": A, "b.png": B, "c.png": BROKEN, "d.png": b"", "e.png": picture(5, 8, 8)}
    )
    with pytest.raises(StageError, match=r"3 of 5 pictures are rejected \(1 broken, 1 empty, 1 too small\)") as caught:
        run(data, tmp_path / "out", max_rejected=0.59)
    for path in ("c.png: broken: PNG", "d.png: empty", "e.png: too small: 8×8"):
        assert path in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert run(data, tmp_path / "out", max_rejected=0.6).used == 2


def listed(file: Path) -> list[list[str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def test_what_found_no_partner(tmp_path):
    """By name, in a table; a picture whose copy has a caption has one."""
    files = {"a.png": A, "copy.png": A, "a.txt": "x", "b.png": B, "c.txt": "y", "c.caption": "z", "d.png": BROKEN}
    data = write_folder(tmp_path / "data", files)
    summary = run(data, tmp_path / "out")
    assert listed(tmp_path / "out/unmatched.csv") == [
        ["path", "what", "reason"],
        ["b.png", "picture", "no caption"],
        ["c.caption", "caption", "no picture of this name"],
        ["c.txt", "caption", "no picture of this name"],
    ]
    assert summary.without_caption == 1
    assert "2 left alone (unmatched.csv), caption, no picture of this name: c.caption, c.txt" in str(summary)


def test_absent_pictures_and_those_not_read_are_rejected(tmp_path):
    rows = jsonl(*({"file_name": name, "text": "x"} for name in ("a.png", "b.png", "gone.png", "c.heic")))
    data = write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "c.heic": "", "metadata.jsonl": rows})
    with pytest.raises(StageError, match=r"2 of 4 pictures are rejected \(1 absent, 1 not read\)") as caught:
        run(data, tmp_path / "out", max_rejected=0.49)
    assert "gone.png: absent: metadata.jsonl has a caption for it" in str(caught.value)
    assert "c.heic: not read: HEIC; convert it to PNG or JPEG" in str(caught.value)
    summary = run(data, tmp_path / "out", max_rejected=0.5)
    assert (summary.files, summary.used) == (4, 2)
    assert listed(tmp_path / "out/rejected.csv")[1:] == [
        ["c.heic", "not read: HEIC; convert it to PNG or JPEG"],
        ["gone.png", "absent: metadata.jsonl has a caption for it"],
    ]


def test_pictures_whose_caption_cannot_be_read_are_rejected(tmp_path):
    """All are named, and none is used with the empty caption."""
    bad = {"b.txt": b"caf\xe9", "c.txt": b"\xff\xfe\x00", "d.caption": b"x" * (1 << 20) + b"y"}
    good = {"a.png": A, "a.txt": "x", "b.png": B, "c.png": C, "d.png": D, "d.txt": "y"}
    data = write_folder(tmp_path / "data", good | bad)
    with pytest.raises(StageError, match=r"3 of 4 pictures are rejected \(3 caption not read\)"):
        run(data, tmp_path / "out", max_rejected=0.7)
    summary = run(data, tmp_path / "out", max_rejected=0.8)
    assert (summary.files, summary.used, summary.without_caption) == (4, 1, 0)
    assert texts(tmp_path / "out") == [(name(A), "x", None)]
    rejected, unmatched = (listed(tmp_path / f"out/{table}.csv")[1:] for table in ("rejected", "unmatched"))
    for (picture_, reason), (path, what, why), file in zip(rejected, unmatched, bad, strict=True):
        assert (picture_, path, what) == (Path(file).stem + ".png", file, "caption")
        assert reason.startswith(f"caption not read: {file}: ") and why.startswith(f"not read: {file}: ")


class Removed(Folder):
    """It is removed between listing and reading."""

    def parts(self):
        for part in super().parts():
            shutil.rmtree(self.root)
            yield part


@pytest.mark.parametrize("count", [3, 40])  # read in this process, in others
def test_pictures_that_are_removed_meanwhile(tmp_path, count):
    data = write_folder(tmp_path / "data", {f"{i}.png": picture(i) for i in range(count)})
    for source in (Removed(str(data)), Folder(str(data))):
        with pytest.raises(SourceError, match=r"data/(0.png)? is gone: .* while index ran; run `dvc repro` again"):
            index(source, tmp_path / "out", SIZES, 16, None, odd_pictures.MAX_PIXELS, 1.0, 1)
    assert not (tmp_path / "out").exists()


def test_a_damaged_tar(tmp_path):
    files = {f"{n:02}.{end}": data for n in range(20) for end, data in (("png", picture(n)), ("txt", f"caption {n}"))}
    data = bytearray(write_tar(tmp_path / "data/a.tar", files).read_bytes())
    with tarfile.open(tmp_path / "data/a.tar") as tar:
        place, behind = (tar.getmember(name).offset for name in ("10.png", "10.txt"))
    data[place + 150] ^= 1
    (tmp_path / "data/a.tar").write_bytes(data)
    where = f"a.tar: damaged: at byte {place} to {behind}: .* 10 pictures lie before it, up to 2 are lost; get the file"
    with pytest.raises(StageError, match=rf"2 of 21 pictures are rejected \(2 damaged\).*\n  {where}"):
        run(tmp_path / "data", tmp_path / "out", max_rejected=0.05)
    assert not (tmp_path / "out").exists()
    summary = run(tmp_path / "data", tmp_path / "out", max_rejected=0.1)
    assert summary.used == 19 and re.search(f"index: {where}", str(summary))
    assert [path for path, _ in listed(tmp_path / "out/rejected.csv")[1:]] == ["a.tar"]
    assert listed(tmp_path / "out/unmatched.csv")[1:] == [["a.tar!10.txt", "caption", "no picture of this name"]]
    assert [text for _, text, _ in texts(tmp_path / "out")].count("caption 11") == 1


def test_none_left(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": BROKEN, "b.png": b""})
    with pytest.raises(StageError, match="all 2 pictures are rejected"):
        run(data, tmp_path / "out", max_rejected=1.0)
    with pytest.raises(StageError, match="holds no pictures: .*a.tar"):
        run(write_tar(tmp_path / "a.tar", {"a.txt": "x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "bound, used", [(None, 4), (3, 4), (1.61, 4), (1.6, 4), (1.59, 3), (1.25, 3), (1.2, 2), (1, 2)]
)
def test_pictures_that_would_be_enlarged_too_much_are_rejected(tmp_path, bound, used):
    sizes = {"a.png": (40, 40), "b.png": (52, 60), "c.png": (64, 64), "d.png": (4000, 900)}
    data = write_folder(tmp_path / "data", {path: picture(1, *size) for path, size in sizes.items()})
    summary = run(data, tmp_path / "out", max_enlargement=bound, max_pixels=10**7)
    found = {row["path"]: row for row in rows(tmp_path / "out/images.parquet")}
    assert summary.used == used == sum(row["rejected"] is None for row in found.values())
    assert summary.enlarged == used - 2
    assert summary.most_enlarged == {4: 1.6, 3: 64 / 52, 2: 1}[used]
    are = "is" if used == 3 else "are"
    assert f"{used - 2} of the used pictures {are} enlarged, {1.24 if used == 3 else 1.6} times at most" in str(
        summary
    ) or (used == 2 and "enlarged" not in str(summary))
    if used < 4:
        assert found["a.png"]["rejected"] == (f"too small: 40×40 would be enlarged 1.6 times to 64×64, above {bound}")
        assert (found["a.png"]["width"], found["a.png"]["bucket_width"]) == (40, None)
        with open(tmp_path / "out/rejected.csv", newline="", encoding="utf-8") as file:
            assert list(csv.reader(file))[1] == ["a.png", found["a.png"]["rejected"]]
    if used < 3:  # 64/52 is 1.2308
        assert found["b.png"]["rejected"] == f"too small: 52×60 would be enlarged 1.24 times to 64×64, above {bound}"


@dataclass(frozen=True)
class Deadly:
    """A source some of whose pictures end the worker process that reads them, as a crash in a decoder does."""

    deadly: tuple[str, ...]
    how: str = "crash"

    def read(self, path: str) -> bytes:
        if path in self.deadly and multiprocessing.parent_process() is not None:
            if self.how == "memory":
                raise MemoryError
            os._exit(11)
        return picture(len(path))


@pytest.mark.parametrize("how", ["crash", "memory"])
def test_a_picture_that_ends_its_worker_is_rejected_alone(tmp_path, how):
    part = next(open_source(str(many(tmp_path / "data"))).parts())
    deadly = ("2/23.png", "x.png")
    for read in (61, 2):  # in the second run all but the deadly ones are known
        with Examiner(Deadly(deadly, how), 10_000, 2) as examiner:
            if read == 2:
                examiner.source = Deadly((), how)
            found, number = examiner.examine(part)
        assert number == read
        reasons = dict(zip(part.paths.to_pylist(), found["rejected"].to_pylist()))
        wanted = deadly if read == 61 else ()
        assert {path for path, reason in reasons.items() if reason} == set(wanted)
        assert all(reasons[path].startswith("broken: the decoder crashed") for path in wanted)
        assert found["image"].to_pylist() == [name(picture(len(path))) for path in part.paths.to_pylist()]


CRASH = """
import ctypes, faulthandler, sys
from pipeline.data import examine
from pipeline.data.sources import open_source
faulthandler.enable()
source = open_source(sys.argv[1])
look = examine.look
examine.look = lambda source, paths, most: ctypes.string_at(0) if paths == ["b.png"] else look(source, paths, most)
with examine.Examiner(source, 10_000, 2) as examiner:
    examiner.examine(next(source.parts()))
"""
A_FEW = ("a.png", "b.png", "c.png")


def test_after_a_crash_at_a_few_pictures_the_next_run_names_the_one_and_goes_on(tmp_path, caplog):
    data = write_folder(tmp_path / "data", {path: picture(len(path)) for path in A_FEW})
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(data)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGSEGV and "Segmentation fault" in done.stderr
    part = next(open_source(str(data)).parts())
    with Examiner(Deadly(("b.png",)), 10_000, 2) as examiner:
        found, _ = examiner.examine(part)
    assert [reason is None for reason in found["rejected"].to_pylist()] == [True, False, True]
    assert "ended while it decoded b.png" in caplog.text
    assert not memo.mark(part.place).exists()


def test_no_picture_is_rejected_when_no_worker_can_start(tmp_path, monkeypatch):
    part = next(open_source(str(many(tmp_path / "data"))).parts())
    monkeypatch.setattr("pipeline.data.examine._start", os._exit)
    with Examiner(3, 10_000, 2) as examiner, pytest.raises(SourceError, match="no worker process can be started"):
        examiner.examine(part)


# --- the stage


def start_stage(folder: Path, data: Path | str, **changes) -> subprocess.Popen:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["images"] = str(data)
    params["index"] |= {"max_enlargement": None} | changes
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.index"], cwd=folder, env=environment, start_new_session=True, **pipes
    )


def stage(folder: Path, data: Path | str, **changes) -> subprocess.CompletedProcess:
    process = start_stage(folder, data, **changes)
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def test_stage(tmp_path):
    write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "b.txt": "x", "readme.md": ""})
    done = stage(tmp_path / "run", "../data")
    assert done.returncode == 0, done.stderr
    assert "index: 2 of 2 pictures are used\nindex: 2 pictures were read" in done.stdout
    assert "index:   bucket 64×64: 1\nindex:   bucket 128×32: 1\n" in done.stdout
    assert "1 picture has none and gets the empty one" in done.stdout
    assert "1 other file is left alone: readme.md" in done.stdout
    write_folder(tmp_path / "data", {"b.txt": "x\ny"})
    assert stage(tmp_path / "run", "../data", caption_lines="one").returncode == 0
    assert sorted(text for _, text, _ in texts(tmp_path / "run/outs/index")) == ["", "x\ny"]
    assert {row["bucket_width"] for row in rows(tmp_path / "run/outs/index/images.parquet")} == {64, 128}
    assert stage(tmp_path / "run", "../data", buckets=False).returncode == 0
    assert {row["bucket_width"] for row in rows(tmp_path / "run/outs/index/images.parquet")} == {64}


@pytest.mark.parametrize(
    "files, changes, message",
    [
        ({"a.png": BROKEN, "b.png": A}, {}, "1 of 2 pictures is rejected (1 broken)"),
        ({"a.png": A, "metadata.jsonl": "{"}, {}, "metadata.jsonl:1: not JSON"),
        ({"a.png": A}, {"bucket_step": 24}, "index.bucket_step: "),
        ({"readme.md": "x"}, {}, "holds no pictures"),
    ],
)
def test_stage_fails_with_one_clear_message(tmp_path, files, changes, message):
    write_folder(tmp_path / "data", files)
    done = stage(tmp_path / "run", tmp_path / "data", **changes)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run/outs").exists()


def session(leader: int) -> list[int]:
    """Living processes of a session (proc(5): the fourth field after the name is the session)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(number) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def test_a_killed_stage_leaves_no_worker_no_out_and_no_rows(tmp_path):
    write_folder(tmp_path / "data", {f"{number}.png": picture(number, 400, 400) for number in range(120)})
    assert stage(tmp_path / "clean", tmp_path / "data").returncode == 0
    shutil.rmtree(tmp_path / "store")
    process = start_stage(tmp_path / "run", tmp_path / "data", workers=2)
    while len(session(process.pid)) < 3:  # the stage and its workers
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for _ in range(500):
        if not session(process.pid):
            break
        time.sleep(0.02)
    assert not session(process.pid)
    assert not (tmp_path / "run/outs").exists()
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*"))
    assert stage(tmp_path / "run", tmp_path / "data").returncode == 0
    assert contents(tmp_path / "run/outs/index") == contents(tmp_path / "clean/outs/index")


def test_of_one_it_speaks_as_of_one(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A, "readme.md": ""})
    said = str(run(data, tmp_path / "out", max_pixels=10**7))
    for line in ("1 of 1 picture is used", "1 picture was read", "0 captions; 1 picture has none and gets the empty one",
                 "1 other file is left alone: readme.md"):  # fmt: skip
        assert f"index: {line}" in said
    write_folder(data, {"a.txt": "a fox", "b.png": A, "b.txt": "b"})
    said = str(run(data, tmp_path / "out", max_pixels=10**7))
    assert "index: 1 file is a copy (copies.csv): each counts" in said and "index: 2 pictures were read" not in said
    write_folder(tmp_path / "bad", {"a.png": BROKEN})
    with pytest.raises(StageError, match=r"the one picture is rejected \(1 broken\)"):
        run(tmp_path / "bad", tmp_path / "out", max_pixels=10**7, max_rejected=0.0)
