import os
import shutil

import pytest

from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import contents, name, picture, rows, write_folder, write_tar

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as pipeline/data/images.py does outside pytest
SIZES = buckets(64, 32)
A, B, C, D = picture(1), picture(2, 100, 40), picture(3, 40, 90), picture(4)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    """A store for each test, whose memo trusts files at once."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data, out, sizes=SIZES, min_side=16, max_pixels=10_000) -> Summary:
    return index(open_source(str(data)), out, sizes, min_side, None, max_pixels, max_rejected=1.0, workers=1)


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
    assert {row["rejected"] for row in rows(tmp_path / "out/images.parquet")} == {
        None,
        "too many pixels: 100×40, above 3999",
    }
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


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: b"", lambda data: data[:200] + b"!" + data[201:], lambda data: b"x" * 99],
)
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
    run(write_folder(tmp_path / "data", {"a.png": A, "b.png": A[:500]}), tmp_path / "out")
    assert [path.suffix for path in (tmp_path / "store/index").iterdir()] == [".memo"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
