"""Sets of a data set in each form: which pictures, how often, with which captions and settings."""

import json
from pathlib import Path

import pytest

from pipeline.cache.building.tokens import Tokenizer
from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets import Set, SetsError, multipliers
from pipeline.data.sets_file import _Set, find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from pipeline.data.views import sizes_of
from pipeline.stage import StageError
from tests.data.data_sets import contents, jsonl, name, picture, rows, write_folder, write_parquet, write_tar
from tests.golden import trigger_rule
from tests.project import ROOT

P = [picture(number) for number in range(12)]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path) -> Summary:
    source = open_source(str(data))
    sets, _ = find(str(data), source)
    return index(source, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=sets, others=sizes_of(sets, 32, True))


def samples(out: Path) -> dict[tuple[int, int], dict]:
    """(number of the picture, of the set) -> repeats, captions and settings."""
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    found = {}
    for row in rows(out / "samples.parquet"):
        key = next(number for number, data in enumerate(P) if name(data)[:8] == row["image"][:8]), row["set"]
        one = found.setdefault(key, row | {"captions": []})
        one["captions"].append(texts[row["caption"]])
    return found


def told(out: Path, *names: str) -> dict[tuple[int, int], tuple]:
    return {
        key: tuple(sorted(one[name]) if name == "captions" else one[name] for name in names)
        for key, one in samples(out).items()
    }


FILES = {
    "cats/a.png": P[0],
    "cats/a.txt": "one\ntwo",
    "cats/b.png": P[1],
    "dogs/c.png": P[2],
    "dogs/c.txt": "three",
    "dogs/below/d.png": P[3],
    "class/e.png": P[4],
    "class/f.png": P[5],
    "g.png": P[6],
}


def test_sets_yaml(tmp_path):
    sets = """
sets:
  - {folder: cats, repeats: 10, prefix: sks, suffix: at night, caption: a cat, caption_dropout: 0.5}
  - {folder: dogs, name: Dogs}
  - {folder: class, class_images: true, loss_weight: 0.25}
"""
    data = write_folder(tmp_path / "data", FILES | {"sets.yaml": sets})
    summary = run(data, tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions", "loss_weight", "caption_dropout", "class_images") == {
        (0, 0): (10, ["sks one at night", "sks two at night"], 1, 0.5, False),
        (1, 0): (10, ["sks a cat at night"], 1, 0.5, False),
        (2, 1): (1, ["three"], 1, None, False),
        (3, 1): (1, [""], 1, None, False),
        (4, 2): (11, [""], 0.25, None, True),  # as many samples as the others have: 22
        (5, 2): (11, [""], 0.25, None, True),
    }
    said = str(summary)
    assert "index: set cats: 2 pictures, 20 samples an epoch\nindex: set Dogs: 2 pictures, 2 samples" in said
    assert "set class: 2 pictures, 22 samples an epoch (class pictures)" in said
    assert "1 left alone (unmatched.csv), picture, in no set: g.png" in said and "other files" not in said


def test_kohyas_folders_of_0_repeats_are_left_out_and_named(tmp_path):
    files = {
        "0_old/a.png": P[0],
        "0_old/below/b.png": P[1],
        "10_fox/c.png": P[2],
        "d.png": P[3],
        "00_cover/e.png": P[4],
    }
    data = write_folder(tmp_path / "data", files)
    summary = run(data, tmp_path / "out")
    assert {row["path"] for row in rows(tmp_path / "out/images.parquet")} == {"10_fox/c.png", "d.png", "00_cover/e.png"}
    assert "2 left alone (unmatched.csv), picture, in no set: 0_old/a.png, 0_old/below/b.png" in str(summary)
    notes = find(str(data), open_source(str(data)))[1]
    assert "left out, as kohya does with 0 repeats: 0_old; rename what is to be used" in notes
    with pytest.raises(StageError, match="no picture of data.images is in a set: "):
        run(write_folder(tmp_path / "none", {"0_old/a.png": P[0]}), tmp_path / "out2")
    sets = {"sets.yaml": "sets: [{folder: 0_old}]"}  # which says otherwise
    run(write_folder(tmp_path / "data", sets), tmp_path / "out3")
    assert {row["path"] for row in rows(tmp_path / "out3/images.parquet")} == {"0_old/a.png", "0_old/below/b.png"}


def test_a_picture_of_two_sets(tmp_path):
    """It is one row of the images, and has a caption in each set."""
    sets = "sets:\n- {folder: cats, prefix: sks}\n- {folder: ., repeats: 0.5}\n"
    data = write_folder(tmp_path / "data", {"cats/a.png": P[0], "b.png": P[1], "cats/a.txt": "x", "sets.yaml": sets})
    run(data, tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions") == {
        (0, 0): (1, ["sks x"]),
        (0, 1): (0.5, ["x"]),
        (1, 1): (0.5, [""]),
    }
    assert len(rows(tmp_path / "out/images.parquet")) == 2
    assert sorted(row["text"] for row in rows(tmp_path / "out/captions.parquet")) == ["", "sks x", "x"]


# Of each key of a set: a value, beside what else, and which tables another one changes. Of images.parquet cache_latents is
# made, of captions.parquet cache_text, and of samples.parquet training; test_sets_dvc.py has DVC run them.
NUMBERS, CAPTIONS, ROWS = {"samples"}, {"captions", "samples"}, {"images", "samples"}
KEYS = {
    "name": ("others", {}, NUMBERS),
    "repeats": (3, {}, NUMBERS),
    "samples": (7, {}, NUMBERS),
    "weight": (3, {}, NUMBERS),
    "class_images": (True, {}, NUMBERS),
    "loss_weight": (0.5, {}, NUMBERS),
    "caption_dropout": (0, {}, NUMBERS),
    "chances": ({"txt": 1, "caption": 3}, {}, NUMBERS),  # both are drawn as it is without
    "caption": ("a cat", {}, CAPTIONS),
    "prefix": ("sks", {}, CAPTIONS),
    "suffix": ("sks", {}, CAPTIONS),
    "shuffle_tags": (True, {}, CAPTIONS),
    "keep_tags": (2, {"shuffle_tags": True}, CAPTIONS),
    "drop_tags": (0.5, {}, CAPTIONS),
    "separator": (";", {"shuffle_tags": True}, CAPTIONS),
    "wildcards": (True, {}, CAPTIONS),
    "variants": (3, {"shuffle_tags": True}, CAPTIONS),
    "resolution": (96, {}, ROWS),
    "flip": (True, {}, ROWS),
    "crop": ("random", {}, ROWS),
    "crops": (2, {"crop": "random"}, ROWS),
    "background": ([0, 0, 0], {}, ROWS),
    "masks": ("masks", {}, ROWS | CAPTIONS),  # a mask is of its picture's name
    "alpha_mask": (True, {}, ROWS | CAPTIONS),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_a_set_changes_these_tables_alone(tmp_path, key):
    """So that DVC runs no cache again that holds what it held before."""
    value, beside, changed = KEYS[key]
    files = {"cats/a.png": picture(0, 130, 100, transparent=True), "cats/b.png": P[1], "dogs/c.png": P[2]}
    files |= {"cats/a.txt": "u, v, {w|x}, y, z", "cats/a.caption": "short", "masks/a.png": picture(3, 130, 100)}
    other = {"folder": "dogs"} | ({"weight": 1} if key == "weight" else {})
    for out, one in (("one", beside), ("two", {**beside, key: value})):
        sets = {"sets": [{"folder": "cats", **one}, other]}
        run(write_folder(tmp_path / "data", files | {"sets.yaml": json.dumps(sets)}), tmp_path / out)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {file for file in one if one[file] != two[file]} - {"unmatched.csv"} == {
        f"{name}.parquet" for name in changed
    }


def test_the_tables_of_no_key_are_unknown():
    assert {*KEYS} == {*_Set.model_fields} - {"folder"}


def test_weights_are_shares_of_the_samples(tmp_path):
    """Of the 3 of an epoch `cats` has three quarters, with two pictures, and `dogs` one."""
    sets = "sets: [{folder: cats, weight: 3}, {folder: dogs, weight: 1}]"
    data = {"cats/a.png": P[0], "cats/b.png": P[1], "dogs/c.png": P[2], "sets.yaml": sets}
    run(write_folder(tmp_path / "data", data), tmp_path / "out")
    assert told(tmp_path / "out", "repeats") == {(0, 0): (1.125,), (1, 0): (1.125,), (2, 1): (0.75,)}


def test_sets_of_tars_and_parquet(tmp_path):
    sets = "sets: [{folder: 0.tar, repeats: 2}, {folder: more, prefix: sks}]"
    write_tar(tmp_path / "tars/0.tar", {"a.png": P[0], "a.txt": "x"})
    write_tar(tmp_path / "tars/more/1.tar", {"a.png": P[1], "a.txt": "y"})
    write_folder(tmp_path / "tars", {"sets.yaml": sets})
    run(tmp_path / "tars", tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions") == {(0, 0): (2, ["x"]), (1, 1): (1, ["sks y"])}
    write_parquet(tmp_path / "tables/0.parquet", {"image": [P[0]], "text": ["x"], "repeats": [3]})
    write_parquet(tmp_path / "tables/more/1.parquet", {"image": [P[1]], "text": ["y"]})
    write_folder(tmp_path / "tables", {"sets.yaml": sets.replace("tar", "parquet")})
    run(tmp_path / "tables", tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions") == {(0, 0): (6, ["x"]), (1, 1): (1, ["sks y"])}


def test_kohyas_folders(tmp_path):
    files = {f"10_sks cat/{number}.png": P[number] for number in range(2)}
    files |= {
        "10_sks cat/0.txt": "x",
        "2_dog/a.png": P[2],
        "2023_trip/a.png": P[3],
        "05_fifth/a.png": P[4],
        "b.png": P[5],
    }
    summary = run(write_folder(tmp_path / "data", files), tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions") == {
        (0, 0): (10, ["x"]),
        (1, 0): (10, ["sks cat"]),
        (2, 1): (2, ["dog"]),
        **{(number, 2): (1, [""]) for number in (3, 4, 5)},  # a year and an order are no repeats
    }
    assert "set 10_sks cat: 2 pictures, 20 samples an epoch" in str(summary)


TOML = """
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 512
batch_size = 4
  [[datasets.subsets]]
  image_dir = "cats"
  num_repeats = 3
  caption_prefix = "sks"
  class_tokens = "a cat"
  [[datasets.subsets]]
  image_dir = "class"
  is_reg = true
[[datasets]]
caption_dropout_rate = 0.5
  [[datasets.subsets]]
  image_dir = "dogs"
  enable_wildcard = true
"""


def test_kohyas_toml(tmp_path):
    data = write_folder(tmp_path / "data", FILES | {"dataset.toml": TOML})
    source = open_source(str(data))
    assert find(str(data), source)[1] == ["batch_size of dataset.toml is not read: train.batch_size is for all sets"]
    run(data, tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions", "caption_dropout", "class_images") == {
        (0, 0): (3, ["sks one"], 0, False),  # the first line alone
        (1, 0): (3, ["sks a cat"], 0, False),
        (2, 2): (1, ["three"], 0.5, False),  # and of the folder itself
        (4, 1): (3, [""], 0, True),  # the class set of the first [[datasets]], which has 6 samples
        (5, 1): (3, [""], 0, True),
    }


def test_onetrainers_concepts(tmp_path):
    concepts = [
        {"name": "cats", "path": "cats", "balancing": 2.5, "loss_weight": 0.5, "image": {"enable_crop_jitter": True}},
        {"path": "dogs", "include_subdirectories": True, "balancing": 4, "balancing_strategy": "SAMPLES",
         "text": {"prompt_source": "filename"}},
        {"path": str(tmp_path / "data/class"), "text": {"prompt_source": "concept", "prompt_path": "prompts.txt"}},
        {"path": "no such folder", "enabled": False},
        {"path": ".", "type": "VALIDATION"},
    ]  # fmt: skip
    files = FILES | {"prompts.txt": "p\n\nq\n", "cats/a-masklabel.png": P[7], "concepts.json": json.dumps(concepts)}
    data = write_folder(tmp_path / "data", files)
    source = open_source(str(data))
    assert find(str(data), source)[1] == [
        "concept 4 is one of validation and is not read: train.validation_share holds pictures out",
    ]
    for text in (json.dumps(concepts), json.dumps({"concepts": concepts})):
        write_folder(data, {"concepts.json": text})
        run(data, tmp_path / "out")
        assert told(tmp_path / "out", "repeats", "captions", "loss_weight") == {
            (0, 0): (2.5, ["one", "two"], 0.5),
            (1, 0): (2.5, [""], 0.5),
            (2, 1): (2, ["c"], 1),
            (3, 1): (2, ["d"], 1),
            (4, 2): (1, ["p", "q"], 1),
            (5, 2): (1, ["p", "q"], 1),
        }


def test_how_often_a_set_is_seen():
    """Of sets with 10, 30 and 5 pictures."""
    sets = Set("a", weight=3), Set("b", weight=1), Set("c", repeats=2)
    assert multipliers(sets, [10, 30, 5]) == [3, 1 / 3, 2]  # 40 samples of a and b as 3 to 1
    sets = Set("a", repeats=3), Set("b", samples=5), Set("c", class_images=True)
    assert multipliers(sets, [10, 30, 5]) == [3, 1 / 6, 7]  # 30 and 5 samples, and as many class pictures
    sets = Set("a", group=0), Set("b", class_images=True, group=0), Set("c", class_images=True, group=1)
    assert multipliers(sets, [10, 30, 5]) == [1, 1 / 3, 0]
    sets = Set("a", repeats=3), Set("b", class_images=True), Set("c", class_images=True)
    assert multipliers(sets, [10, 30, 20]) == [3, 0.6, 0.6]  # 30 class pictures in both sets together
    sets = Set("a"), Set("b", class_images=True, repeats=0.5), Set("c", weight=1)
    assert multipliers(sets, [10, 30, 0]) == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sets.yaml", "sets: [{folder: birds}]", r"sets.yaml: sets.0.folder: there is no 'birds' in "),
        ("sets.yaml", "sets: [{folder: ../other}]", r"'../other' is outside of .*, where DVC would see no change"),
        ("sets.yaml", "- folder: cats", "the whole file: wanted a mapping whose key sets has the list"),
        ("sets.yaml", "sets: [cats]", "sets.0: wanted a mapping of its keys .found 'cats'"),
        ("sets.yaml", "sets: [{repeats: 2}]", "sets.0.folder: it is not there, and has to be"),
        ("sets.yaml", "sets: [{folder: cats, repeat: 2}]", r"sets.0.repeat: there is no such key; did you mean repeats\?; there are alpha_mask, .*, wildcards \(found 2\)"),
        ("sets.yaml", "sets: [{folder: cats, repeats: -1}]", r"sets.0.repeats: Input should be greater than or equal"),
        ("sets.yaml", "sets: [{folder: cats, repeats: 2, weight: 1}]", r"sets.0: repeats and weight both say"),
        ("sets.yaml", "sets: [{folder: cats}, {folder: empty}]", r"the set 'empty' has no pictures that are used"),
        ("sets.yaml", "sets: []", r"sets: List should have at least 1 item"),
        ("sets.yaml", "[", r"sets.yaml, line 1 is not YAML 1.2"),
        ("dataset.toml", "[", r"dataset.toml is not TOML"),
        ("dataset.toml", "[general]", r"wanted \[general\] and \[\[datasets\]\]"),
        ("dataset.toml", "[[datasets]]", r"datasets.0: wanted \[\[datasets.subsets\]\]"),
        ("dataset.toml", TOML.replace("class_tokens", "clas_tokens"), r"clas_tokens is no key of kohya's .*; did you mean class_tokens"),
        ("dataset.toml", TOML.replace("num_repeats = 3", "num_repeats = true"), r"num_repeats: found 'True'"),
        ("dataset.toml", TOML.replace("num_repeats = 3", "color_aug = true"), r"color_aug is not done here; remove it"),
        ("dataset.toml", TOML.replace('image_dir = "cats"', ""), r"datasets.0.subsets.0: no image_dir"),
        ("dataset.toml", TOML.replace("= 0.5", "= 2"), r"caption_dropout_rate: found 2, wanted 0 to 1"),
        ("concepts.json", "{", r"concepts.json is not JSON"),
        ("concepts.json", "{}", r"wanted a list of OneTrainer's concepts"),
        ("concepts.json", '[{"path": "cats", "balancing": "x"}]', r"0.balancing: found 'x' of another type"),
        ("concepts.json", '[{"path": "cats", "type": "PRIOR_PREDICTION"}]', r"0.type: found 'PRIOR_PREDICTION'"),
        ("concepts.json", '[{"path": "cats", "image": {"enable_random_hue": true}}]', r"enable_random_hue is not done"),
        ("concepts.json", '[{"name": "x"}]', r"0: no path"),
        ("sets.yaml", "sets: [{folder: cats, chances: {png: 1}}]", r"sets.0.chances.png: there is no such key; there are 'txt', 'caption' or 'table'"),
        ("sets.yaml", "sets: [{folder: cats, drop_tags: 2}]", r"sets.0.drop_tags: Input should be less than"),
        ("dataset.toml", TOML.replace("class_tokens", "metadata_file"), r"metadata_file is not done here; remove it .its captions belong into metadata.jsonl"),
        ("dataset.toml", TOML.replace("num_repeats", "keep_tokens = -1\nnum_repeats"), r"keep_tokens: found -1"),
        ("concepts.json", '[{"path": "cats", "text": {"caps_randomize_enable": true}}]', r"caps_randomize_enable is not"),
        ("concepts.json", '[{"path": "cats", "text": {"tag_dropout_enable": true, "tag_dropout_probability": 1}}]',
         r"0.text: of tag dropout the mode RANDOM without special tags"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_says_why(tmp_path, file, text, message):
    (tmp_path / "other").mkdir()
    data = write_folder(tmp_path / "data", FILES | {file: text, "empty/readme.md": ""})
    with pytest.raises(SetsError, match=message):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_files_of_sets_are_refused(tmp_path):
    data = write_folder(tmp_path / "data", FILES | {"dataset.toml": TOML, "sets.yaml": "sets: [{folder: .}]"})
    with pytest.raises(SetsError, match=r"holds sets.yaml and dataset.toml, and each says"):
        run(data, tmp_path / "out")


def test_repeats_of_a_table_and_of_a_set_are_both_taken(tmp_path):
    lines = jsonl({"file_name": "a.png", "text": "x", "repeats": 3}, {"file_name": "b.png", "text": "y"})
    files = {"cats/a.png": P[0], "cats/b.png": P[1], "copy.png": P[1], "cats/metadata.jsonl": lines}
    data = write_folder(tmp_path / "data", files | {"sets.yaml": "sets: [{folder: ., samples: 10}]"})
    summary = run(data, tmp_path / "out")
    assert told(tmp_path / "out", "repeats", "captions") == {(0, 0): (6, ["x"]), (1, 0): (4, ["y"])}
    assert summary.often == 10


def chances(out: Path) -> dict[int, dict[str, float]]:
    """Of each picture the captions with their share, where it is in one set."""
    texts = {row["caption"]: row["text"] for row in rows(out / "captions.parquet")}
    found: dict[int, dict[str, float]] = {}
    for row in rows(out / "samples.parquet"):
        number = next(number for number, data in enumerate(P) if name(data)[:8] == row["image"][:8])
        found.setdefault(number, {})[texts[row["caption"]]] = row["chance"]
    return {number: {text: one / sum(of.values()) for text, one in of.items()} for number, of in found.items()}


def test_variants_of_tags_are_captions_like_others(tmp_path):
    sets = "sets: [{folder: ., prefix: sks, shuffle_tags: true, keep_tags: 1, variants: 40}]"
    files = {"a.png": P[0], "a.txt": "x, a, b", "b.png": P[1], "b.txt": "prose", "sets.yaml": sets}
    data = write_folder(tmp_path / "data", files)
    summary = run(data, tmp_path / "out")
    found = chances(tmp_path / "out")
    assert found[0].keys() == {"sks x, a, b", "sks x, b, a"} and found[1] == {"sks prose": 1}
    assert all(0.2 < chance < 0.8 for chance in found[0].values())
    assert summary.captions == 3
    before = contents(tmp_path / "out")
    run(data, tmp_path / "again")
    assert contents(tmp_path / "again") == before


@pytest.mark.parametrize("case", trigger_rule.CASES)
def test_a_trigger_word_has_its_place_whatever_becomes_of_the_tags(tmp_path, case):
    """All that can come of it, as of kohya's own code and of OneTrainer's (tests/golden/make_trigger.py)."""
    golden = json.loads((ROOT / "tests/golden/trigger.json").read_text())
    given = trigger_rule.CASES[case]
    rules = {"folder": ".", "shuffle_tags": True, "drop_tags": trigger_rule.DROP, "variants": 1000}
    data = write_folder(tmp_path / "data", {"a.png": P[0], "a.txt": given["caption"]})

    def texts() -> set[str]:
        run(data, tmp_path / "out")
        return {row["text"] for row in rows(tmp_path / "out/captions.parquet")}

    write_folder(data, {"sets.yaml": json.dumps({"sets": [rules | given["set"]]})})
    # A comma of a prefix or suffix stands as it was written: with a space before it, which is nothing to CLIP's
    # tokenizer, and also where no tag is left.
    found = texts()
    tidy = {text.replace(" ,", ",").removesuffix(",") for text in found}
    assert tidy == set(golden["kohya"][case]) == set(golden["onetrainer"].get(case, tidy))
    tokenizer = Tokenizer(ROOT / "data/tokenizer")
    assert all(tokenizer(text) == tokenizer(text.replace(" ,", ",")) for text in found)
    (data / "sets.yaml").unlink()
    write_folder(data, {"a.txt": given.get("caption for kohya", given["caption"])})
    keys = given["kohya"] | {"shuffle_caption": True, "caption_tag_dropout_rate": trigger_rule.DROP}
    keys |= {"image_dir": ".", "caption_extension": ".txt"}
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    write_folder(data, {"dataset.toml": "\n".join(["[[datasets]]", "[[datasets.subsets]]", *lines])})
    found = texts()
    assert len(found) > 4 and found <= set(golden["kohya"][case])  # 8 variants


def test_several_captions_with_chances(tmp_path):
    sets = "sets: [{folder: ., chances: {txt: 0.7, caption: 0.3}}]"
    files = {"a.png": P[0], "a.txt": "one\ntwo", "a.caption": "prose", "b.png": P[1], "b.txt": "three"}
    table = jsonl({"file_name": "a.png", "text": "of a table, which has no chance"})
    files |= {"sets.yaml": sets, "metadata.jsonl": table}
    run(write_folder(tmp_path / "data", files), tmp_path / "out")
    found = chances(tmp_path / "out")
    assert found == {0: pytest.approx({"one": 0.35, "two": 0.35, "prose": 0.3}), 1: {"three": 1}}


def test_tags_as_kohya_and_onetrainer_write_them(tmp_path):
    """kohya's prefix is part of the first tag; its wildcards choose among the lines too."""
    keys = "shuffle_caption = true\nkeep_tokens = 1\ncaption_tag_dropout_rate = 1"
    toml = TOML.replace('class_tokens = "a cat"', keys)
    toml = toml.replace('image_dir = "dogs"', 'image_dir = "dogs"\ncaption_separator = ";"\nshuffle_caption = true')
    files = FILES | {"cats/a.txt": "x, y, z\nq", "cats/b.txt": "x", "dogs/c.txt": "{1|2};3\nq", "dataset.toml": toml}
    data = write_folder(tmp_path / "data", files)
    run(data, tmp_path / "out")
    found = told(tmp_path / "out", "captions")
    assert found[0, 0] == (["sks x"],) and found[1, 0] == (["sks x"],)
    assert set(found[2, 2][0]) <= {"1, 3", "3, 1", "2, 3", "3, 2", "q"} and len(found[2, 2][0]) > 2
    (data / "dataset.toml").unlink()
    text = {"enable_tag_shuffling": True, "tag_delimiter": ";", "keep_tags_count": 1}
    write_folder(data, {"concepts.json": json.dumps([{"path": "dogs", "text": text}]), "dogs/c.txt": "a;b;c"})
    run(data, tmp_path / "out")
    assert told(tmp_path / "out", "captions") == {(2, 0): (["a; b; c", "a; c; b"],)}
