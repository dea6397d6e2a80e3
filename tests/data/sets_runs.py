"""Runs of the index and of both caches over a data set with sets, whose encoders fail or are killed at a given batch."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np

from pipeline.cache.building import engine, latents, shelf, text
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.reading.reader import Reader
from pipeline.cache.tools import verify
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.views import sizes_of, with_usual
from tests.cache import cache_children
from tests.data.data_sets import picture, write_folder

# The first has nothing that a crop could leave out.
PICTURES = [picture(number, 40 + 9 * number, 40, transparent=number > 4) for number in range(8)]
FOLDERS = ("a", "b")

HOW = Preparation("moments", "center", 1, True, "area", (255, 255, 255))
KINDS = (shards.TEXT, shards.LATENTS)
MADE_WITH = {"text": {"clip_l": "1"}, "latents": HOW.fingerprint}


def mask(number: int, chosen: int) -> bytes:
    """Of the shape of its picture."""
    return picture(20 + chosen, 40 + 9 * number, 40)


class Words:
    begin, end = 1000, 1001

    def __call__(self, caption: str) -> list[int]:
        return [sum(map(ord, word)) for word in caption.split()]


class End:
    """Of a run at its batch number `at`, counted over both caches: it fails, or is killed."""

    def __init__(self, at: int | None = None, kill: bool = False):
        self._left, self._kill = at, kill

    def batch(self) -> None:
        if self._left == 0 and self._kill:
            time.sleep(0.05)  # in which what was encoded before is written
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left == 0:
            raise RuntimeError("as it was told")
        self._left = None if self._left is None else self._left - 1


class Encoder:
    def __init__(self, end: End):
        self._end = end

    def __call__(self, ids_l, ids_g):
        self._end.batch()
        hidden = np.stack([ids_l, ids_g], axis=2).astype(np.float32)
        return hidden, np.concatenate([ids_l[:, :2], ids_g[:, :2]], axis=1).astype(np.float32)


def pairs(names: np.ndarray, groups: np.ndarray) -> list[tuple[bytes, tuple[int, int]]]:
    return [(name.tobytes(), tuple(group)) for name, group in zip(names, groups.tolist(), strict=True)]


class Vae:
    def __init__(self, end: End):
        self._end = end

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self._end.batch()
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
            own = dict(values[1])
            self.sets[values[0]] = {"folder": values[0], **own.pop("times"), **own}
        elif kind in ("alpha_mask", "further", "neighbors", "emphasis"):
            setattr(self, kind, values[0])
        elif kind == "variants":
            self.variants = values[0]

    def run(self, out: Path, end: End) -> None:
        """index and both caches, which training can then read."""
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
            text.make_job(
                captions, MADE_WITH["text"], Words, lambda: Encoder(end), 1, 3, emphasis=self.emphasis, width_l=1
            ),
            out / "text",
        )
        images = out / "index/images.parquet"
        build(
            latents.make_job(images, source, MADE_WITH["latents"], HOW, lambda: Vae(end), 2, 2),
            out / "latents",
        )
        with Reader(out / "latents", out / "text", out / "index/samples.parquet", preparation=HOW) as reader:
            for view in range(reader.n):
                reader.read(np.array([view]), 0, 0)


def build(job: engine.Job, out: Path) -> None:
    """One cache; encodes exactly what the store lacks."""
    lacking = set(pairs(job.wanted.rows, job.wanted.groups)) - stored(job.wanted.kind)
    report = engine.build(job, out)
    assert report.encoded == len(lacking)


def stored(kind: shards.Kind) -> set[tuple[bytes, tuple[int, int]]]:
    """The rows of the store's files, each of which must be whole."""
    paths = list(shelf.folder(kind, MADE_WITH[kind.name]).glob("[!.]*.parquet"))
    assert not [reason for path in paths if (reason := verify.damage(path))]
    opened = [shards.open_shard(path, kind) for path in paths]
    return {pair for one in opened for pair in pairs(one.columns["row"], shelf.groups_of(one))}


def killed(data: Data, out: Path, at: int) -> bool:
    """Whether a run in a process of its own had a batch number `at`, at which SIGKILL ended it. What was stored is kept."""
    before = [stored(kind) for kind in KINDS]
    (code,) = cache_children.finish([cache_children.start(_killed, data, out, at)])
    assert code in (0, -signal.SIGKILL)
    assert all(rows <= stored(kind) for kind, rows in zip(KINDS, before))
    return code != 0


def _killed(data: Data, out: Path, at: int) -> None:
    data.run(out, End(at, kill=True))
