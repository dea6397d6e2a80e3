"""Files of sets damaged at random: sets.yaml, dataset.toml, concepts.json, and folders of odd names. A message may
come, never a traceback."""

import json
import os
import random
import shutil
from pathlib import Path

from pipeline.data.masks import of_sets
from pipeline.data.sets import members, multipliers
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of
from pipeline.stage import StageError
from tests.fuzz.cases import try_cases
from tests.fuzz.fuzz_tables import damage

FOLDERS = ("cats", "dogs", "10_cat", "2023_x", "0_x", "é", "a b", "a.b")
PATHS = (".", "", "..", "../data", "/", "cats/../dogs", "a.png", "p.txt", "\0", "~", "x" * 300, "cats/", "no such")
ODD = (None, 0, -1, 0.5, 1e300, -0.0, True, "", "x", [], [1], {}, {"a": 1}, 2**70, "\u2028", float("nan"), float("inf"))
# Key -> a value that may be there
KEYS = {
    "sets.yaml": {
        "repeats": 2.5, "samples": 7, "weight": 0.5, "class_images": True, "loss_weight": 0.5, "caption_dropout": 0.1,
        "caption": "a cat", "prefix": "sks", "suffix": "at night", "name": "x", "chances": {"txt": 0.7},
        "shuffle_tags": True, "keep_tags": 1, "drop_tags": 0.3, "separator": ";", "wildcards": True, "variants": 3,
        "masks": "dogs", "alpha_mask": True, "flip": True, "crop": "random", "crops": 2, "resolution": 96,
        "background": [0, 1, 2],
    },
    "dataset.toml": {
        "num_repeats": 3, "is_reg": True, "class_tokens": "a cat", "caption_extension": ".txt", "caption_prefix": "sks",
        "caption_dropout_rate": 0.5, "flip_aug": True, "enable_wildcard": True, "resolution": 512, "color_aug": False,
        "metadata_file": "x.json", "odd": 1, "shuffle_caption": True, "keep_tokens": 1, "caption_tag_dropout_rate": 0.3,
        "caption_separator": ";", "secondary_separator": ";;;", "keep_tokens_separator": "|||",
        "random_crop": True, "alpha_mask": True, "conditioning_data_dir": "cats",
    },
    "concepts.json": {
        "name": "x", "enabled": True, "type": "STANDARD", "include_subdirectories": True, "balancing": 2.5,
        "repeats": 2, "balancing_strategy": "SAMPLES", "loss_weight": 0.5, "seed": 7,
        "image": {"x": True, "enable_random_flip": True, "enable_resolution_override": True, "resolution_override": "96"},
        "text": {"prompt_source": "concept", "prompt_path": "p.txt"},
    },
}  # fmt: skip


def fuzz(seconds: float, seed: int) -> int:
    """Try cases until the time is up; returns how many. Raises AssertionError, naming the case, on a defect."""
    return try_cases(check, seconds, seed)


def check(folder: Path, seed: int, number: int) -> None:
    """One case."""
    root = folder / "data"
    draw = random.Random(f"{seed} {number}")
    shutil.rmtree(root, ignore_errors=True)
    folders = draw.sample(FOLDERS, 3)
    for name in folders:
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(b"not looked at")
        (root / name / "a.txt").write_text(draw.choice(("x, y; z", "{a|b}", "{{", "x\ny")))
    (root / "a.png").write_bytes(b"not looked at")
    (root / "p.txt").write_text(draw.choice(("", "\n", "one\ntwo")))
    kind = draw.choice((*KEYS, None))
    data = b""
    if kind:
        text = MAKERS[kind](draw, folders).encode("utf-8", "surrogatepass")
        data = damage(draw, text) if draw.random() < 0.4 else text
        (root / kind).write_bytes(data)
    try:
        source = open_source(str(root))
        sets, notes = find(str(root), source)
        sizes_of(sets, 32, draw.random() < 0.5)
        for part in source.parts():
            part = of_sets(part, sets)
            found = members(part, sets)
            assert len(found.texts) == len(found.texts_2) == len(found.caption_picture) == len(found.caption_number)
            assert found.texts.null_count == 0
            for often in multipliers(sets, [float(draw.randrange(5)) for _ in sets]):
                assert 0 <= often < 1e16, (sets, often)
        "\n".join(notes).encode("utf-8", "backslashreplace")
    except StageError as error:
        str(error).encode("utf-8", "backslashreplace")
    except Exception as error:
        raise AssertionError(f"seed {seed}, case {number}, {kind}: {error!r}; bytes {data[:2000]!r}") from error


def settings(draw: random.Random, kind: str) -> dict:
    """Some keys, of which few have odd values."""
    keys = draw.sample(sorted(KEYS[kind]), draw.randrange(4))
    return {key: draw.choice(ODD) if draw.random() < 0.2 else KEYS[kind][key] for key in keys}


def path(draw: random.Random, folders: list[str]) -> object:
    return draw.choice((*PATHS, *ODD)) if draw.random() < 0.2 else draw.choice(folders)


def sets_yaml(draw: random.Random, folders: list[str]) -> str:
    sets = [settings(draw, "sets.yaml") | {"folder": path(draw, folders)} for _ in range(draw.randrange(4))]
    whole = {"sets": sets}
    return json.dumps(
        draw.choice((whole, whole, whole, sets, {"sets": sets, "more": 1})), ensure_ascii=draw.random() < 0.5
    )


def dataset_toml(draw: random.Random, folders: list[str]) -> str:
    lines = []
    for table in ("[general]", "[[datasets]]", "[[datasets.subsets]]", "[[datasets.subsets]]"):
        if draw.random() < 0.9:
            given = settings(draw, "dataset.toml")
            if table.endswith("subsets]]"):
                given["image_dir"] = path(draw, folders)
            elif draw.random() < 0.8:
                given = {key: value for key, value in given.items() if key not in ("is_reg", "metadata_file")}
            lines += [table, *(f"{key} = {toml(value)}" for key, value in given.items())]
    return "\n".join(lines)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return {"NaN": "nan", "Infinity": "inf", "null": '""'}.get(text := json.dumps(value), text)


def concepts_json(draw: random.Random, folders: list[str]) -> str:
    concepts = []
    for _ in range(draw.randrange(4)):
        concept = settings(draw, "concepts.json") | {"path": path(draw, folders)}
        if draw.random() < 0.3:
            source = draw.choice(("sample", "concept", "filename", "filename", 7, None))
            concept["text"] = {"prompt_source": source, "prompt_path": path(draw, folders)}
            concept["text"][draw.choice(("enable_tag_shuffling", "tag_delimiter", "tag_dropout_enable", "x"))] = (
                draw.choice(ODD)
            )
        if draw.random() < 0.3:
            concept["image"] = {draw.choice(("enable_random_flip", "enable_random_hue", "x")): draw.choice(ODD)}
        concepts.append(concept)
    return json.dumps(draw.choice((concepts, {"concepts": concepts}, [concepts])), ensure_ascii=draw.random() < 0.5)


MAKERS = {"sets.yaml": sets_yaml, "dataset.toml": dataset_toml, "concepts.json": concepts_json}


if __name__ == "__main__":
    print(fuzz(float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", "0"))))
