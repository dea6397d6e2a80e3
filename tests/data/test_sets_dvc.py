"""What DVC re-runs when a key of a set or of index changes, and how many rows are encoded then."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.dvc_project import changed, dvc, project_in, ran_changed, save, stages_of


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with project_in(tmp_path_factory.mktemp("dvc")) as root:
        yield root


@pytest.fixture(scope="module")
def sets(project):
    """The project on a data set of its own, after its first `dvc repro`: `a` has three pictures, each of two captions, `b` a
    square one and a wide one. What a case changes stays."""
    root = project / "data/sets"
    for folder, number, width in (("a", 0, 130), ("a", 1, 130), ("a", 2, 130), ("b", 3, 130), ("b", 4, 390)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        save(root / f"{folder}/{number}.png", number, width, 130)
        (root / f"{folder}/{number}.txt").write_text(f"u, v, w, x, y, picture {number}")
        if folder == "a":
            (root / f"{folder}/{number}.caption").write_text(f"short {number}")
    found = {name: {"folder": name} for name in "ab"}
    write_sets(project, found)
    changed(project, "data.images=data/sets")
    return found


def write_sets(project: Path, sets: dict[str, dict]) -> None:
    (project / "data/sets/sets.yaml").write_text(json.dumps({"sets": list(sets.values())}))


def ran_and_encoded(output: str) -> tuple[list[str], dict[str, int]]:
    """The stages that ran, without those after train, and how many rows each cache encoded."""
    rows = re.findall(r"(latents|captions) in \d+ shards: (\d+) encoded", output)
    return [stage for stage in stages_of(output) if stage not in ("merge", "sample")], {
        f"cache_{'text' if kind == 'captions' else kind}": int(count) for kind, count in rows
    }


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"a": {"weight": 2}, "b": {"weight": 1}}, {}),
        ({"a": {"chances": {"txt": 1, "caption": 3}}}, {}),
        ({"b": {"prefix": "sks"}}, {"cache_text": 2}),
        ({"b": {"keep_tags": 1, "shuffle_tags": True}}, {"cache_text": 16}),
        ({"a": {"flip": True}}, {"cache_latents": 3}),
        ({"a": {"resolution": 96}}, {"cache_latents": 6}),
        ({"b": {"crop": "random", "crops": 2}}, {"cache_latents": 4}),
        ({"b": {"background": [0, 0, 0]}}, {"cache_latents": 4}),
    ],
    ids=lambda one: " ".join(key for keys in one.values() if isinstance(keys, dict) for key in keys),
)
def test_a_key_of_a_set(project, sets, change, rows):
    """tests/data/test_sets.py has all keys, and the tables that each changes."""
    for name, keys in change.items():
        sets[name] |= keys
    write_sets(project, sets)
    assert ran_and_encoded(dvc(project, "repro")) == (["index", *rows, "train"], rows)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("index.caption_variants=9", {"cache_text": 2}),
        ("index.caption_seed=1", {"cache_text": 16}),  # of 9 and 9; one is drawn twice, one was there
        ("index.neighbors=1", {"cache_latents": 4}),  # of `b`; at 96 there is one bucket
        ("index.min_bucket=2", {"cache_latents": 2}),  # both crops of the square one, in the wide one's bucket
        ("index.max_samples=3", {"cache_latents": 0, "cache_text": 0}),
    ],
)
def test_a_key_of_index(project, sets, change, rows):
    assert ran_and_encoded(changed(project, change)) == (["index", *rows, "train"], rows)


def test_columns_of_other_names(project, sets):
    """In a folder they are those of its tables, of which this one has none: the outs stay."""
    assert ran_changed(project, "data.image_column=other", "data.caption_column=other") == ["index", "cache_latents"]
    for number in range(3):
        save(project / f"data/{number}.png", 10 + number, 64, 64)
    new = [(project / f"data/{number}.png").read_bytes() for number in range(3)]
    columns = {"image": new[:2], "later": new[1:], "text": ["a", "b"], "words": ["b", "c"]}
    pq.write_table(pa.table(columns), project / "data/columns.parquet")
    changed(project, "data.images=data/columns.parquet", "data.image_column=image", "data.caption_column=text")
    rows = {"cache_latents": 1, "cache_text": 0}
    assert ran_and_encoded(changed(project, "data.image_column=later")) == (["index", *rows, "train"], rows)
    rows = {"cache_text": 1}
    assert ran_and_encoded(changed(project, "data.caption_column=words")) == (["index", *rows, "train"], rows)
