import csv
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import store
from pipeline.data import captions, memo, tables
from pipeline.data.buckets import buckets, choose
from pipeline.data.examine import Examiner
from pipeline.data.index import _folder_for_rows, index
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from pipeline.stage import StageError
from tests import odd_pictures
from tests.data_sets import jsonl, picture, write_folder, write_parquet, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as pipeline/data/images.py does outside pytest
ROOT = Path(__file__).resolve().parent.parent
SIZES = buckets(64, 32)
A, B, C, D = picture(1), picture(2, 100, 40), picture(3, 40, 90), picture(4)
BROKEN = A[:500]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """A store for each test, whose memo trusts files at once."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, sizes=SIZES, min_side=16, max_pixels=odd_pictures.MAX_PIXELS, max_rejected=1.0, workers=1):
    return index(open_source(str(data)), out, sizes, min_side, max_pixels, max_rejected, workers)


def name(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def rows(file: Path) -> list[dict]:
    return pq.read_table(file).to_pylist()


def texts(out: Path) -> list[tuple]:
    """(image, text, text_2) in order."""
    return [(row["image"], row["text"], row["text_2"]) for row in rows(out / "captions.parquet")]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


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
        return {"image": name(data), **dict(zip(names, size + bucket)), "rejected": None}

    reason = by_path["broken.png"]["rejected"]
    empty = dict.fromkeys(("width", "height", "bucket_width", "bucket_height"))
    assert by_path == {
        "a.png": used(A, (40, 40), (64, 64)),
        "copy.png": used(A, (40, 40), (64, 64)),
        "d/b.png": used(B, (100, 40), (128, 32)),
        "c.png": used(C, (40, 90), (32, 128)),
        "broken.png": {"image": name(BROKEN), **empty, "rejected": reason},
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
    assert summary.without_caption == 1


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
    assert set(wanted) == {"images.parquet", "captions.parquet", "rejected.csv"}
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
    assert after["images.parquet"] == before["images.parquet"] and after["captions.parquet"] != before["captions.parquet"]


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


# --- the memo


def test_only_new_and_changed_files_are_read(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "c.png": C})
    assert run(data, tmp_path / "out").read == 3
    assert run(data, tmp_path / "out").read == 0
    write_folder(data, {"d.png": D})
    assert run(data, tmp_path / "out").read == 1
    times = (data / "a.png").stat().st_mtime_ns
    write_folder(data, {"a.png": A[:-1] + b"!"})  # the size stays, and the time is put back
    os.utime(data / "a.png", ns=(times, times))
    assert run(data, tmp_path / "out").read == 1
    assert name(A[:-1] + b"!") in {row["image"] for row in rows(tmp_path / "out/images.parquet")}
    (data / "b.png").unlink()
    (data / "c.png").rename(data / "e.png")
    summary = run(data, tmp_path / "out")
    assert (summary.files, summary.read) == (3, 1)


def test_a_tar_that_grows_is_read_again_and_others_are_not(tmp_path):
    for tar in "abc":
        write_tar(tmp_path / f"data/{tar}.tar", {"0.png": A, "1.png": B})
    assert run(tmp_path / "data", tmp_path / "out").read == 6
    write_tar(tmp_path / "data/b.tar", {"0.png": A, "1.png": B, "2.png": C})
    assert run(tmp_path / "data", tmp_path / "out").read == 3


def test_young_files_are_not_remembered(tmp_path, monkeypatch):
    """A file may be written to within the same tick of the clock in which it was read."""
    monkeypatch.setattr(memo, "_SETTLED_NS", 3600 * 10**9)
    data = write_folder(tmp_path / "data", {"a.png": A})
    assert [run(data, tmp_path / "out").read for _ in range(2)] == [1, 1]


def test_other_rules_make_the_memo_void(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A, "b.png": B})
    assert run(data, tmp_path / "out", max_pixels=3999).read == 2
    assert {row["rejected"] for row in rows(tmp_path / "out/images.parquet")} == {None, "too many pixels: 100×40, above 3999"}
    summary = run(data, tmp_path / "out", max_pixels=4000)
    assert (summary.read, summary.used) == (2, 2)


def test_min_side_and_buckets_are_applied_to_what_the_memo_knows(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": picture(1, 50, 50), "b.png": picture(2, 90, 40)})
    run(data, tmp_path / "out", min_side=16)
    summary = run(data, tmp_path / "out", min_side=41, sizes=[(96, 96)])
    assert (summary.read, summary.used, summary.buckets) == (0, 1, {(96, 96): 1})
    shutil.rmtree(tmp_path / "store")
    before = contents(tmp_path / "out")
    assert run(data, tmp_path / "out", min_side=41, sizes=[(96, 96)]).read == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:200] + b"!" + data[201:], lambda data: b"x" * 99])
def test_a_damaged_memo_is_not_used(tmp_path, capsys, damage):
    data = write_folder(tmp_path / "data", {"a.png": A, "b.png": B})
    run(data, tmp_path / "out")
    wanted = contents(tmp_path / "out")
    (file,) = (tmp_path / "store/index").glob("*.memo")
    file.write_bytes(damage(file.read_bytes()))
    assert run(data, tmp_path / "out").read == 2
    assert "is damaged and is not used" in capsys.readouterr().out
    assert contents(tmp_path / "out") == wanted
    assert run(data, tmp_path / "out").read == 0


def test_old_memos_make_room(tmp_path, monkeypatch):
    sets = [write_folder(tmp_path / f"data {number}", {"a.png": A, "b.png": B}) for number in range(4)]
    for data in sets:
        run(data, tmp_path / "out")
    files = list((tmp_path / "store/index").glob("*.memo"))
    assert len(files) == 4
    run(sets[0], tmp_path / "out")  # used last
    monkeypatch.setattr(memo, "_BOUND", 2 * files[0].stat().st_size + 100)
    write_folder(sets[3], {"c.png": C})
    run(sets[3], tmp_path / "out")
    assert len(list((tmp_path / "store/index").glob("*.memo"))) == 2
    assert [run(data, tmp_path / "out").read for data in (sets[0], sets[3])] == [0, 0]


def test_the_store_is_left_clean(tmp_path):
    run(many(tmp_path / "data"), tmp_path / "out")
    assert [path.suffix for path in (tmp_path / "store/index").iterdir()] == [".memo"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


# --- failures


def test_too_many_rejected(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "c.png": BROKEN, "d.png": b"", "e.png": picture(5, 8, 8)})
    with pytest.raises(StageError, match=r"3 of 5 pictures are rejected \(1 broken, 1 empty, 1 too small\)") as caught:
        run(data, tmp_path / "out", max_rejected=0.59)
    for path in ("c.png: broken: PNG", "d.png: empty", "e.png: too small: 8×8"):
        assert path in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert run(data, tmp_path / "out", max_rejected=0.6).used == 2


def test_none_left(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": BROKEN, "b.png": b""})
    with pytest.raises(StageError, match="all 2 pictures are rejected"):
        run(data, tmp_path / "out", max_rejected=1.0)
    with pytest.raises(StageError, match="holds no pictures"):
        run(write_tar(tmp_path / "a.tar", {"a.txt": "x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Deadly:
    """A source whose pictures end the process that reads them, as a crash in a decoder does."""

    root: str = ""

    def read(self, path: str) -> bytes:
        os._exit(11)


def test_a_worker_that_crashes_is_reported(tmp_path):
    part = next(open_source(str(many(tmp_path / "data"))).parts())
    with Examiner(Deadly(), 1000, 2) as examiner, pytest.raises(SourceError, match=r"worker process ended .*: 0/0.png, 0/14.png"):
        examiner.examine(part)


# --- the stage


def start_stage(folder: Path, data: Path | str, **changes) -> subprocess.Popen:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["images"] = str(data)
    params["index"] |= changes
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "stages.index"], cwd=folder, env=environment, start_new_session=True, **pipes)


def stage(folder: Path, data: Path | str, **changes) -> subprocess.CompletedProcess:
    process = start_stage(folder, data, **changes)
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def test_stage(tmp_path):
    write_folder(tmp_path / "data", {"a.png": A, "b.png": B, "b.txt": "x", "readme.md": ""})
    done = stage(tmp_path / "run", "../data")
    assert done.returncode == 0, done.stderr
    assert "index: 2 of 2 pictures are used; 2 were read" in done.stdout
    assert "index:   bucket 64×64: 1\nindex:   bucket 128×32: 1\n" in done.stdout
    assert "1 pictures have none and get the empty one" in done.stdout
    assert "1 other files are left alone: readme.md" in done.stdout
    assert {row["bucket_width"] for row in rows(tmp_path / "run/outs/index/images.parquet")} == {64, 128}
    assert stage(tmp_path / "run", "../data", buckets=False).returncode == 0
    assert {row["bucket_width"] for row in rows(tmp_path / "run/outs/index/images.parquet")} == {64}


@pytest.mark.parametrize(
    "files, changes, message",
    [
        ({"a.png": BROKEN, "b.png": A}, {}, "1 of 2 pictures are rejected (1 broken)"),
        ({"a.png": A, "metadata.jsonl": "{"}, {}, "metadata.jsonl:1: not JSON"),
        ({"a.png": A}, {"bucket_step": 24}, "index.resolution is 64 and index.bucket_step 24"),
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
    assert [path.name[:5] for path in (tmp_path / "store/index").iterdir()] == ["rows-"]
    assert stage(tmp_path / "run", tmp_path / "data").returncode == 0
    assert contents(tmp_path / "run/outs/index") == contents(tmp_path / "clean/outs/index")
    assert not [path for path in (tmp_path / "store/index").iterdir() if path.name.startswith("rows-")]


def test_two_runs_for_one_out_do_not_mix(tmp_path):
    data = write_folder(tmp_path / "data", {"a.png": A})
    with _folder_for_rows(tmp_path / "out"), pytest.raises(store.Busy, match="works on the same"):
        run(data, tmp_path / "out")
    assert run(data, tmp_path / "out").used == 1


# --- the tables


def plain_captions(images: list[dict], given: list[tuple]) -> list[tuple]:
    """What write_captions does, in plain Python."""
    used = {row["image"] for row in images if row["rejected"] is None}
    found = set(given) | {(image, "", None) for image in used - {row[0] for row in given}}
    return sorted((image, captions.name(text, text_2), text, text_2 or "") for image, text, text_2 in found)


@pytest.mark.parametrize("count", [1, 37, 3000])
def test_tables_against_plain_python(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "_ROW_GROUP", 128)
    generator = np.random.default_rng(count)
    hashes = [generator.bytes(16) for _ in range(max(1, count // 2))]
    bad = {image for image in hashes if generator.random() < 0.2}
    images, given = [], []
    for number in range(count):
        image = hashes[generator.integers(len(hashes))]
        size = None if image in bad else 64
        images.append(dict(zip(tables.IMAGES.names, (image, f"{number:05}.png", 100, 100, size, size, "broken" if image in bad else None))))
        if image not in bad:
            for _ in range(generator.integers(0, 4)):
                given.append((image, f"caption {generator.integers(5)}", [None, "second"][generator.integers(2)]))
    outs = []
    for order in (1, -1):
        folder = tmp_path / f"run {order}"
        folder.mkdir()
        image_rows, text_rows = tables.Rows(folder / "i", tables.IMAGES), tables.Rows(folder / "t", tables.TEXTS)
        step = 100 if order == 1 else 7
        for start in range(0, count, step):
            image_rows.add(pa.Table.from_pylist(images[::order][start : start + step], schema=tables.IMAGES))
        for start in range(0, len(given), step):
            columns = [dict(zip(tables.TEXTS.names, row)) for row in given[::order][start : start + step]]
            text_rows.add(pa.Table.from_pylist(columns, schema=tables.TEXTS))
        tables.write_images(image_rows, folder / "images.parquet")
        empty = tables.write_captions(image_rows, text_rows, folder / "captions.parquet")
        outs.append([(folder / name).read_bytes() for name in ("images.parquet", "captions.parquet")])
    assert outs[0] == outs[1]
    assert rows(folder / "images.parquet") == sorted(images, key=lambda row: (row["image"], row["path"]))
    found = [(row["image"], row["caption"], row["text"], row["text_2"] or "") for row in rows(folder / "captions.parquet")]
    assert found == plain_captions(images, given)
    assert empty == sum(text == "" for _, _, text, _ in found)
    groups = pq.ParquetFile(folder / "images.parquet").metadata
    assert [groups.row_group(g).num_rows for g in range(groups.num_row_groups)][:-1] == [128] * ((count - 1) // 128)

    used = tables.used_images(folder / "images.parquet")
    first = {}
    for row in sorted(images, key=lambda row: (row["image"], row["path"])):
        if row["rejected"] is None:
            first.setdefault(row["image"], row["path"])
    assert dict(zip(used["image"].to_pylist(), used["path"].to_pylist())) == first and len(used) == len(first)


def test_choice_of_buckets_in_the_table_is_choose(tmp_path):
    sizes = buckets(1024, 64)
    shapes = [(400, 300), (300, 400), (512, 512), (700, 170), (90, 500)]
    write_folder(tmp_path / "data", {f"{n}.bmp": picture(n, *shape, form="BMP") for n, shape in enumerate(shapes)})
    run(tmp_path / "data", tmp_path / "out", sizes=sizes)
    for row in rows(tmp_path / "out/images.parquet"):
        chosen = sizes[choose(np.array([row["width"]]), np.array([row["height"]]), sizes)[0]]
        assert (row["bucket_width"], row["bucket_height"]) == chosen
