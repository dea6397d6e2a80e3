"""A plan counts what several resolutions, neighbouring buckets and sets make of the pictures."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.cache.building.pictures import open_pictures, prepare
from pipeline.cache.format.preparation import Preparation
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from pipeline.doctor import __main__ as doctor
from pipeline.planning import disk, duration, views
from pipeline.planning.run import from_params
from tests.data.data_sets import picture, write_folder
from tests.data.test_masks import mask
from tests.training.training_samples import params

SETS = """sets:
  - {folder: a, flip: true}
  - {folder: ., resolution: [64, 96], crop: random, crops: 3}
"""


@pytest.mark.parametrize("sets, further, neighbors", [(None, (), 0), (None, (96,), 1), (SETS, (), 0), (SETS, (), 2)])
def test_the_rows_are_those_of_the_cache(tmp_path, monkeypatch, sets, further, neighbors):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    files = {f"{'ab'[n % 2]}/{n}.png": picture(n // 3, 60 + 20 * (n // 3), 70) for n in range(9)}  # some are copies
    data = write_folder(tmp_path / "data", files | ({"sets.yaml": sets} if sets else {}))
    source = open_source(str(data))
    found = with_usual(find(str(data), source)[0], further)
    how = {"sets": found, "others": sizes_of(found, 32, True), "neighbors": neighbors}
    index(source, tmp_path / "index", buckets(64, 32), 16, None, 10**6, 1.0, 1, **how)
    if sets:
        write_folder(data, {"a/6.mask.png": mask(0, 100, 70)})
        index(open_source(str(data)), tmp_path / "index", buckets(64, 32), 16, None, 10**6, 1.0, 1, **how)
    usual = Preparation("moments", "center", 1, False, "area", (255, 255, 255))
    made = open_pictures(tmp_path / "index/images.parquet", source, usual.fingerprint, usual)
    counted = views.count(tmp_path / "index", usual)
    assert (counted.rows, counted.pixels) == (len(made.names), int(made.bucket.prod(axis=1).sum()))
    assert counted.buckets == len(set(map(tuple, made.bucket.tolist())))
    areas = made.bucket.prod(axis=1)
    assert (counted.smallest, counted.largest) == (areas.min(), areas.max())
    prepared = [prepare(made, row)[1] for row in range(len(made.names))]
    masked = sum(len(numbers.get("mask", b"")) for numbers in prepared)
    assert counted.masked == 64 * masked and (masked > 0) == (sets is not None)
    run = from_params(params(**{"index.further_resolutions": list(further)}), 3, 3, counted=counted)
    text = disk.cache_parts(run)[1]
    assert disk.cache_bytes(run) - 3 * text == 2 * 8 * counted.pixels // 64 + masked
    said = plan.report(run)
    assert run.buckets == counted.buckets and f"{counted.rows:,} rows of latents to encode" in said
    sizes = "64² to 96² pixels (sets have resolutions of their own)" if sets else "64 and 96" if further else "64"
    assert f"(at {sizes}" in said and (f", {sizes}, float32" in said) == (sets is not None)


def test_without_an_index_each_resolution_and_neighbor_counts():
    one = from_params(params(), 100)
    several = from_params(params(**{"index.further_resolutions": [96], "index.neighbors": 2}), 100)
    assert several.rows == 6 * one.rows and several.pixels == 100 * 3 * (64**2 + 96**2)
    assert (one.side, several.side) == (8, 12)  # memory is that of the largest
    assert duration.steps(one) == duration.steps(several)  # a picture is seen no more often
    assert "64 x 64 and 96 x 96" in plan.report(
        several
    ) and "with 2 neighbouring bucket(s) at each; at most" in plan.report(several)
    squares = from_params(params(**{"index.further_resolutions": [96], "index.buckets": False}), 100)
    assert squares.buckets == 2


def test_the_doctor_counts_the_rows_too(tmp_path, monkeypatch):
    """Of resolutions that sets have of their own params.yaml says nothing."""
    monkeypatch.setattr(plan, "INDEX", tmp_path)
    images, side = pa.array([b"a" * 16, b"b" * 16], pa.binary(16)), pa.array([64, 64], pa.int32())
    seen = pa.array([None, [0, 64, 64, 0, 128, 128]], pa.list_(pa.int32()))
    columns = {"image": images, "path": ["a", "b"], "bucket_width": side, "bucket_height": side, "views": seen}
    columns["mask"] = pa.nulls(2, pa.string())
    pq.write_table(pa.table(columns | {"rejected": pa.nulls(2, pa.string())}), tmp_path / "images.parquet")
    pq.write_table(pa.table({"image": images, "caption": images}), tmp_path / "captions.parquet")
    run = doctor._planned(params())
    assert (run.images, run.rows, run.pixels, run.largest) == (2, 3, 2 * 64**2 + 128**2, 128)
