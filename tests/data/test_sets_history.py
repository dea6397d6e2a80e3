"""Whatever was done to a data set's files and sets before, the index and both caches end as one clean run leaves them, and
no caption and no picture is encoded that the store holds."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache.building import engine
from pipeline.cache.format import shards
from tests.data.data_sets import contents
from tests.data.sets_runs import FOLDERS, Data, End, killed

WORDS = ["x, y, z", "{a|b}, c", "", "(x:1.3), y", "(x"]
CENTRES = [None, {"focus": [0.1, 0.9]}, {"bbox": [20, 4, 10, 10]}, {"focus": [0.9, 0.1]}]
TIMES = [{}, {"repeats": 0}, {"repeats": 0.5}, {"repeats": 3}, {"samples": 5}, {"weight": 2}]
SETTINGS = st.fixed_dictionaries(
    {"times": st.sampled_from(TIMES)},
    optional={
        "loss_weight": st.sampled_from([0.5, 2.0]),
        "caption_dropout": st.sampled_from([0, 0.5]),
        "prefix": st.sampled_from(["sks", "photo of"]),
        "suffix": st.just("at night"),
        "shuffle_tags": st.just(True),
        "keep_tags": st.just(1),
        "drop_tags": st.sampled_from([0.3]),
        "separator": st.just(";"),
        "wildcards": st.just(True),
        "variants": st.sampled_from([2, 5]),
        "class_images": st.booleans(),
        "chances": st.just({"txt": 1.0}),
        "flip": st.booleans(),
        "crop": st.sampled_from(["center", "random"]),
        "crops": st.sampled_from([1, 2]),
        "resolution": st.sampled_from([64, 96, [64, 96]]),
        "background": st.just([0, 0, 0]),
    },
).map(lambda one: one if one.get("crop") == "random" else {key: one[key] for key in one if key != "crops"})
CHANGE = st.one_of(
    st.tuples(st.just("picture"), st.sampled_from(FOLDERS), st.integers(0, 7)),
    st.tuples(st.just("copy"), st.sampled_from(FOLDERS), st.integers(0, 7)),
    st.tuples(st.just("remove"), st.sampled_from(FOLDERS), st.integers(0, 7)),
    st.tuples(st.just("mask"), st.sampled_from(FOLDERS), st.integers(0, 7), st.sampled_from([None, 0, 1])),
    st.tuples(st.just("focus"), st.sampled_from(FOLDERS), st.integers(0, 7), st.sampled_from(CENTRES)),
    st.tuples(st.just("emphasis"), st.sampled_from(["none", "a1111"])),
    st.tuples(st.just("caption"), st.sampled_from(FOLDERS), st.integers(0, 7), st.sampled_from(WORDS)),
    st.tuples(st.just("set"), st.sampled_from(FOLDERS), SETTINGS),
    st.tuples(st.just("alpha_mask"), st.booleans()),
    st.tuples(st.just("further"), st.sampled_from([(), (96,)])),
    st.tuples(st.just("neighbors"), st.integers(0, 2)),
    st.tuples(st.just("variants"), st.integers(1, 6)),
    st.tuples(st.just("failing run"), st.integers(0, 3)),
    st.tuples(st.just("killed run"), st.integers(0, 12)),
    st.tuples(st.just("run")),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGE, min_size=1, max_size=12), st.sampled_from([0.0, 1000.0]))
def test_any_history_ends_as_a_clean_run(tmp_path_factory, history, part_seconds):
    root = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 4)
        patch.setattr(engine, "PART_SECONDS", part_seconds)
        patch.setenv("PIPELINE_STORE", str(root / "store"))
        data = Data(root)
        for kind, *values in history:
            if kind == "run":
                data.run(root / "out", End())
            elif kind == "failing run":
                with contextlib.suppress(RuntimeError):
                    data.run(root / "out", End(values[0]))
            elif kind == "killed run":
                killed(data, root / "out", values[0])
            else:
                data.change(kind, *values)
        data.run(root / "out", End())
        patch.setenv("PIPELINE_STORE", str(root / "another store"))
        data.run(root / "clean", End())
    for folder in ("index", "text", "latents"):
        assert contents(root / "out" / folder) == contents(root / "clean" / folder)


def test_runs_are_killed_in_each_cache(tmp_path, monkeypatch):
    """Of a data set that has of all: two sets with variants of captions, masks, a centre of interest, two resolutions."""
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(engine, "PART_SECONDS", 0.0)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    data, out = Data(tmp_path), tmp_path / "out"
    for number in range(4):
        data.change("picture", "ab"[number % 2], number)
        data.change("caption", "ab"[number % 2], number, f"v, w, {{x|y}}, {number}")
    data.change("mask", "a", 2, 1)
    data.change("focus", "b", 3, {"focus": [0.9, 0.1]})
    tags = {"times": {"weight": 2}, "shuffle_tags": True, "wildcards": True, "variants": 3, "prefix": "sks"}
    data.change("set", "a", tags | {"flip": False})
    data.change("set", "b", tags | {"crop": "random", "crops": 2, "resolution": [64, 96], "background": [0, 0, 0]})
    kills = {"text": 0, "latents": 0}
    for number in range(100):
        if not killed(data, out, 1 + number):
            break
        kills["latents" if (out / "text").exists() else "text"] += 1
    assert min(kills.values()) >= 2
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "another store"))
    data.run(tmp_path / "clean", End())
    for folder in ("index", "text", "latents"):
        assert contents(out / folder) == contents(tmp_path / "clean" / folder)
