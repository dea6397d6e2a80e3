"""What `index` and `python -m pipeline data` say of sets that are not used as their user means it."""

from pathlib import Path

import pytest

from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets import SetsError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import picture, rows, write_folder

P = [picture(number) for number in range(12)]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, **how) -> Summary:
    source = open_source(str(data))
    sets, _ = find(str(data), source)
    return index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets, **how)


SMALL = {"fox/0.png": P[0], **{f"owl/{n}.png": P[n] for n in range(1, 12)}}


@pytest.mark.parametrize(
    "files", [{"sets.yaml": "sets: [{folder: fox}, {folder: owl}]"}, {}], ids=["sets.yaml", "kohya"]
)
def test_a_try_leaves_out_sets_of_which_it_takes_no_picture(tmp_path, files):
    small = SMALL if files else {f"2_{path}": data for path, data in SMALL.items()}
    data = write_folder(tmp_path / "data", small | files)
    said = str(run(data, tmp_path / "out", max_samples=2))
    fox = "fox" if files else "2_fox"
    assert (
        f"set {fox}: 0 pictures, 0 samples an epoch; left out: of the pictures that index.max_samples takes none"
        in said
    )
    assert said.count("left out") == 1 and {row["set"] for row in rows(tmp_path / "out/samples.parquet")} == {1}
    write_folder(data, {"empty/note.md": "", "sets.yaml": "sets: [{folder: ., name: all}, {folder: empty}]"})
    with pytest.raises(SetsError, match="the set 'empty' has no pictures"):
        run(data, tmp_path / "out", max_samples=2)
