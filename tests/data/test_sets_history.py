"""Whatever was done to a data set's files and sets before, the index and both caches end as one clean run leaves them, and
no caption and no picture is encoded that the store holds."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache.building import engine, latents, shelf, text
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.reader import Reader
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from tests.data.data_sets import contents, picture, write_folder

# The first has nothing that a crop could leave out.
PICTURES = [picture(number, 40 + 9 * number, 40, transparent=number > 4) for number in range(8)]
FOLDERS = ("a", "b")
WORDS = ["x, y, z", "{a|b}, c", "", "(x:1.3), y", "(x"]
CENTRES = [None, {"focus": [0.1, 0.9]}, {"bbox": [20, 4, 10, 10]}, {"focus": [0.9, 0.1]}]
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "repeats": st.sampled_from([0, 0.5, 3]),
        "loss_weight": st.sampled_from([0.5, 2.0]),
        "prefix": st.sampled_from(["sks", "photo of"]),
        "shuffle_tags": st.just(True),
        "drop_tags": st.sampled_from([0.3]),
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
    st.tuples(st.just("run")),
)


HOW = Preparation("moments", "center", 1, True, "area", (255, 255, 255))


def mask(number: int, chosen: int) -> bytes:
    """Of the shape of its picture."""
    return picture(20 + chosen, 40 + 9 * number, 40)


class Words:
    begin, end = 1000, 1001

    def __call__(self, caption: str) -> list[int]:
        return [sum(map(ord, word)) for word in caption.split()]


class Encoder:
    """Fails at the given batch."""

    def __init__(self, fails_at: int | None = None):
        self.fails_at = fails_at

    def __call__(self, ids_l, ids_g):
        if self.fails_at == 0:
            raise RuntimeError("as it was told")
        self.fails_at = None if self.fails_at is None else self.fails_at - 1
        hidden = np.stack([ids_l, ids_g], axis=2).astype(np.float32)
        return hidden, np.concatenate([ids_l[:, :2], ids_g[:, :2]], axis=1).astype(np.float32)


def pairs(names: np.ndarray, groups: np.ndarray) -> list[tuple[bytes, tuple[int, int]]]:
    return [(name.tobytes(), tuple(group)) for name, group in zip(names, groups.tolist(), strict=True)]


class Vae:
    """Fails at the given batch."""

    def __init__(self, fails_at: int | None):
        self.fails_at = fails_at

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self.fails_at == 0:
            raise RuntimeError("as it was told")
        self.fails_at = None if self.fails_at is None else self.fails_at - 1
        return np.concatenate([pixels[:, :, ::8, ::8]] * 3, axis=1)[:, :8]


class Data:
    def __init__(self, root):
        self.root, self.variants, self.alpha_mask = root / "data", 3, False
        self.further, self.neighbors, self.emphasis = (), 0, "none"
        self.sets = {folder: {"folder": folder} for folder in FOLDERS}
        write_folder(self.root, {f"{folder}/first.png": PICTURES[0] for folder in FOLDERS})

    def change(self, kind: str, *values) -> None:
        if kind in ("picture", "copy"):
            folder, number = values
            write_folder(self.root, {f"{folder}/{kind} {number}.png": PICTURES[number]})
        elif kind == "remove":
            (self.root / values[0] / f"picture {values[1]}.png").unlink(missing_ok=True)
        elif kind == "mask":
            folder, number, chosen = values
            path = self.root / folder / f"picture {number}.mask.png"
            path.unlink(missing_ok=True) if chosen is None else path.write_bytes(mask(number, chosen))
        elif kind == "focus":
            folder, number, said = values
            path = self.root / folder / f"picture {number}.json"
            path.unlink(missing_ok=True) if said is None else path.write_text(json.dumps(said))
        elif kind == "caption":
            folder, number, words = values
            write_folder(self.root, {f"{folder}/picture {number}.txt": words})
        elif kind == "set":
            self.sets[values[0]] = {"folder": values[0], **values[1]}
        elif kind in ("alpha_mask", "further", "neighbors", "emphasis"):
            setattr(self, kind, values[0])
        elif kind == "variants":
            self.variants = values[0]

    def run(self, out, encoder: Encoder):
        """index and cache_text."""
        write_folder(self.root, {"sets.yaml": json.dumps({"sets": list(self.sets.values())})})
        source = open_source(str(self.root))
        sets, _ = find(str(self.root), source, self.variants, 0)
        sets = with_usual(sets, self.further)
        how = {
            "sets": sets,
            "alpha_mask": self.alpha_mask,
            "others": sizes_of(sets, 32, True),
            "neighbors": self.neighbors,
            "emphasis": self.emphasis,
        }
        index(source, out / "index", buckets(64, 32), 16, None, 10**6, 1.0, 1, **how)
        captions = out / "index/captions.parquet"
        build(
            text.make_job(captions, {"clip_l": "1"}, Words, lambda: encoder, 1, 3, emphasis=self.emphasis, width_l=1),
            out / "text",
        )
        made_with = HOW.fingerprint
        made = latents.make_job(
            out / "index/images.parquet", source, made_with, HOW, lambda: Vae(encoder.fails_at), 2, 2
        )
        build(made, out / "latents")
        with Reader(out / "latents", out / "text", out / "index/samples.parquet", preparation=HOW) as reader:
            for view in range(reader.n):
                reader.read(np.array([view]), 0, 0)


def build(job: engine.Job, out) -> None:
    """One cache; encodes exactly what the store lacks."""
    stored = job.wanted.folder.glob("[!.]*.parquet")
    opened = [shards.open_shard(path, job.wanted.kind) for path in stored]
    held = {pair for one in opened for pair in pairs(one.columns["row"], shelf.groups_of(one))}
    lacking = set(pairs(job.wanted.rows, job.wanted.groups)) - held
    report = engine.build(job, out)
    assert report.encoded == len(lacking)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGE, min_size=1, max_size=12))
def test_any_history_ends_as_a_clean_run(tmp_path_factory, history):
    root = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 4)
        patch.setenv("PIPELINE_STORE", str(root / "store"))
        data = Data(root)
        for kind, *values in history:
            if kind == "run":
                data.run(root / "out", Encoder())
            elif kind == "failing run":
                with contextlib.suppress(RuntimeError):
                    data.run(root / "out", Encoder(fails_at=values[0]))
            else:
                data.change(kind, *values)
        data.run(root / "out", Encoder())
        patch.setenv("PIPELINE_STORE", str(root / "another store"))
        data.run(root / "clean", Encoder())
    for folder in ("index", "text", "latents"):
        assert contents(root / "out" / folder) == contents(root / "clean" / folder)
