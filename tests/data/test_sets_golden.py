"""Sets beside what kohya's own loader, OneTrainer's and `datasets` make of the same files (tests/golden/make_sets.py)."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of
from tests.data.data_sets import rows, write_folder
from tests.golden.sets_rule import CASES, first_copies

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/sets.json").read_text())
NEAR = 0.06  # shares are of so many draws, theirs and ours

# Where ours differs, and why: a test of its own each, below. docs/own-data.md says so.
DIFFERENT = {
    "kohya": {
        "folders, otherwise",
        "uneven class pictures",
        "too many class pictures",
        "two sets of class pictures",
        "lines behind a prefix",
        "wildcards in others",
        "empty tags",
    },
    "onetrainer": {"settings left out", "rounded down"},
    "datasets": {"without a row"},
}
SAME = [(peer, case) for peer, cases in CASES.items() for case in cases if case not in DIFFERENT[peer]]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def ours(tmp_path: Path, peer: str, case: str) -> list[dict]:
    """The samples by the index, as make_sets.py has the peer's; what a set leaves to params.yaml as that comes: no
    mirroring, crops at the center."""
    data, out = write_folder(tmp_path / "data", CASES[peer][case]), tmp_path / "out"
    source = open_source(str(data))
    sets, _ = find(str(data), source, variants=1000)
    index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets, others=sizes_of(sets, 32, True))
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    images, firsts = {row["image"]: row for row in rows(out / "images.parquet")}, first_copies(data)
    found, captions = {}, defaultdict(dict)
    for row in rows(out / "samples.parquet"):
        one, key = sets[row["set"]], (row["image"], row["set"])
        captions[key][texts[row["caption"]]] = row["chance"]
        found[key] = {
            "path": firsts[images[row["image"]]["path"]],
            "set": one.name,
            "times": row["repeats"],
            "class_images": row["class_images"],
            "caption_dropout": row["caption_dropout"],
            "loss_weight": row["loss_weight"],
            "flip": bool(one.flip),
            "crop": one.crop or "center",
            "sides": sorted(one.resolutions or (64,)),
            "alpha_mask": bool(one.alpha_mask),
            "mask": images[row["image"]]["mask"],
        }
    totals = {key: sum(several.values()) for key, several in captions.items()}
    shares = {key: {text: one / totals[key] for text, one in several.items()} for key, several in captions.items()}
    return [row | {"captions": shares[key]} for key, row in found.items()]


def settled(row: dict, keys) -> str:
    """All but the shares of captions, in one order."""
    row = {key: row[key] for key in keys} | {"captions": sorted(row["captions"]), "times": round(row["times"], 4)}
    return json.dumps(
        {key: float(value) if type(value) is int else value for key, value in row.items()}, sort_keys=True
    )


def alike(mine: list[dict], theirs: list[dict]) -> None:
    keys = theirs[0].keys()
    mine, theirs = (sorted(several, key=lambda row: settled(row, keys)) for several in (mine, theirs))
    assert [settled(row, keys) for row in mine] == [settled(row, keys) for row in theirs]
    for one, other in zip(mine, theirs):
        assert one["captions"] == pytest.approx(other["captions"], abs=NEAR)


@pytest.mark.parametrize(("peer", "case"), SAME, ids=[f"{peer}, {case}" for peer, case in SAME])
def test_the_index_has_the_samples_of_the_peers_own_loader(tmp_path, peer, case):
    """Paths, sets, times an epoch, captions with their shares, class pictures, dropout, loss weights, flip, crop,
    resolutions and masks: those of which the peer has a notion."""
    alike(ours(tmp_path, peer, case), GOLDEN[peer][case])


def test_all_cases_are_in_the_golden_file():
    assert {peer: set(cases) for peer, cases in CASES.items()} == {peer: set(GOLDEN[peer]) for peer in CASES}


def test_a_concept_as_onetrainer_writes_it_is_read_with_its_settings(tmp_path):
    """All of them, of which those of pictures stand in place of params.yaml's."""
    written = json.dumps([GOLDEN["onetrainer_writes"]])
    data = write_folder(tmp_path / "data", CASES["onetrainer"]["settings left out"] | {"concepts.json": written})
    (one,), notes = find(str(data), open_source(str(data)))
    assert (one.folder, one.repeats, one.loss_weight, one.rules, notes) == ("cats", 1, 1, None, [])
    assert (one.crop, one.flip, one.resolutions) == ("random", False, ())


def told(samples: list[dict], *names: str) -> dict:
    return {row["path"]: tuple(row[name] for name in names) if names[1:] else row[names[0]] for row in samples}


def both(tmp_path: Path, peer: str, case: str, *names: str) -> tuple[dict, dict]:
    """(theirs, ours) of each path."""
    assert case in DIFFERENT[peer]
    return told(GOLDEN[peer][case], *names), told(ours(tmp_path, peer, case), *names)


def test_of_kohyas_folders_years_and_orders_do_not_count_and_the_others_are_used(tmp_path):
    theirs, mine = both(tmp_path, "kohya", "folders, otherwise", "set", "times")
    same = {"2_dog/a.png": ("2_dog", 2), "2_dog/lines.png": ("2_dog", 2)}
    assert theirs == same | {
        "2023_trip/a.png": ("2023_trip", 2023),
        "05_fifth/a.png": ("05_fifth", 5),
        "7/a.png": ("7", 7),
    }
    once = ("2023_trip/a.png", "05_fifth/a.png", "7/a.png", "others/a.png", "a.png")
    assert mine == same | {"2_dog/below/a.png": ("2_dog", 2)} | dict.fromkeys(once, ("others", 1))


def test_of_kohyas_folders_each_line_is_a_caption(tmp_path):
    theirs, mine = both(tmp_path, "kohya", "folders, otherwise", "captions")
    assert theirs["2_dog/lines.png"] == {"one": 1} and mine["2_dog/lines.png"] == {"one": 0.5, "two": 0.5}
    assert theirs["2_dog/a.png"] == mine["2_dog/a.png"] == {"dog": 1}


@pytest.mark.parametrize(
    ("case", "class_times", "our_times"),
    [
        ("uneven class pictures", [1, 1, 1, 1, 2], [1.2] * 5),
        ("too many class pictures", [1, 1], [0.4] * 5),  # kohya leaves three out
        ("two sets of class pictures", [4, 8], [6, 6]),  # num_repeats of class pictures is a start for kohya
    ],
)
def test_class_pictures_take_turns(tmp_path, case, class_times, our_times):
    """They are as many samples together as kohya's, and each is seen as often as the others."""
    theirs, mine = GOLDEN["kohya"][case], ours(tmp_path, "kohya", case)
    times = [sorted(row["times"] for row in several if row["class_images"]) for several in (theirs, mine)]
    assert times[0] == class_times and times[1] == pytest.approx(our_times)
    assert sum(class_times) == pytest.approx(sum(our_times))
    alike([row for row in mine if not row["class_images"]], [row for row in theirs if not row["class_images"]])


@pytest.mark.parametrize(
    ("case", "theirs", "mine"),
    [
        ("lines behind a prefix", {"sks one", "two at night"}, {"sks one at night", "sks two at night"}),
        ("wildcards in others", {"{a|{b|c}"}, {"a", "b", "c"}),
        ("empty tags", {"fox, , snow"}, {"fox, snow"}),  # where the empty one is among those that are kept
    ],
)
def test_captions_that_differ_from_kohyas(tmp_path, case, theirs, mine):
    found = both(tmp_path, "kohya", case, "captions")
    assert [set(one["cats/0.png"]) for one in found] == [theirs, mine]


def test_what_a_concept_leaves_out_is_as_params_yaml_has_it(tmp_path):
    """OneTrainer's own default is a random crop; its interface writes all settings."""
    theirs, mine = both(tmp_path, "onetrainer", "settings left out", "crop", "flip")
    assert theirs == {"cats/0.png": ("random", False)} and mine == {"cats/0.png": ("center", False)}
    set_, _ = find(str(tmp_path / "data"), open_source(str(tmp_path / "data")))
    assert (set_[0].crop, set_[0].flip) == (None, None)


def test_fractions_of_a_repeat_are_not_rounded(tmp_path):
    """1.5 of three pictures are 4 an epoch in OneTrainer; here 4.5, in turn."""
    theirs, mine = both(tmp_path, "onetrainer", "rounded down", "times")
    assert sum(theirs.values()) == pytest.approx(4) and set(mine.values()) == {1.5}


def test_pictures_without_a_row_of_the_table_are_used(tmp_path):
    theirs, mine = both(tmp_path, "datasets", "without a row", "captions")
    assert theirs == {"0.png": {"zero": 1}} and mine == theirs | {"1.png": {"": 1}}
