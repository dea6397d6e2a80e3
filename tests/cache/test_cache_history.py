"""Whatever happened before, the cache ends as one clean run leaves it, and nothing is encoded that the store holds."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache.building import engine, shelf
from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from tests.cache import cache_children
from tests.cache.cache_children import Logging, finish
from tests.cache.cache_jobs import centred, content, folder_bytes, job

FINGERPRINTS = [{"vae": "0" * 32}, {"vae": "1" * 32}]

CHANGE = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30)),
    st.tuples(st.just("remove"), st.integers(0, 10**6)),
    st.tuples(st.just("remove many"), st.integers(0, 10**6)),
    st.tuples(st.just("rename"), st.integers(0, 10**6)),
    st.tuples(st.just("duplicate"), st.integers(0, 10**6)),
    st.tuples(st.just("edit"), st.integers(0, 10**6)),
    st.tuples(st.just("focus"), st.integers(0, 10**6)),
    st.tuples(st.just("views"), st.integers(1, 3)),
    st.tuples(st.just("another VAE"), st.integers(0, 1)),
    st.tuples(st.just("killed run"), st.integers(0, 12)),
    st.tuples(st.just("failing run"), st.integers(0, 12)),
    st.tuples(st.just("run"), st.integers(1, 5)),
)


class Data:
    """A folder of pictures: path -> its content. Each is in so many buckets (`views`)."""

    def __init__(self):
        self.files: dict[str, bytes] = {"first": content(0)}
        self.made, self.views = 0, 1

    def new(self) -> int:
        self.made += 1
        return self.made

    def change(self, kind: str, value: int) -> None:
        paths = sorted(self.files)
        chosen = paths[value % len(paths)]
        if kind == "add":
            self.files |= {f"added {n}": content(n) for n in (self.new() for _ in range(value))}
        elif kind == "remove" and len(paths) > 1:
            del self.files[chosen]
        elif kind == "remove many":
            self.files = {path: self.files[path] for path in paths[value % len(paths) :]}
        elif kind == "rename":
            self.files[f"renamed {self.new()}"] = self.files.pop(chosen)
        elif kind == "duplicate":
            self.files[f"copy {self.new()}"] = self.files[chosen]
        elif kind == "edit":
            self.files[chosen] = content(self.new())
        elif kind == "focus":  # of one picture one of three
            self.files[chosen] = centred(value % 5, value % 3)
        elif kind == "views":
            self.views = value


def rows_of(paths) -> list[bytes]:
    """As Logging writes them."""
    found = []
    for shard in (shards.open_shard(path, shards.LATENTS) for path in paths):
        found += packed(shard.columns["row"], shelf.groups_of(shard))
    return found


def packed(rows: np.ndarray, groups: np.ndarray) -> list[bytes]:
    return [row.tobytes() + (group // 8).astype("<i4").tobytes() for row, group in zip(rows, groups)]


def run(
    pictures, fingerprint, out, dies_at: int | None = None, kill: bool = False, batch_size: int = 4, views: int = 1
) -> None:
    """One run. Checks that it encodes exactly the rows that the store lacks (a dying run: none that it has)."""
    log = out.parent / "encoded"
    log.write_bytes(b"")

    work = job(pictures, Logging(log, dies_at, kill=False), fingerprint, batch_size=batch_size, views=views)
    lacking = {*packed(work.wanted.rows, work.wanted.groups)} - {*rows_of(work.wanted.folder.glob("[!.]*.parquet"))}
    if kill:
        how = list(pictures), fingerprint, out, log, dies_at, batch_size, views
        finish([cache_children.start(cache_children.killed, *how)])
    elif dies_at is not None:
        try:
            engine.build(work, out)
        except RuntimeError:
            assert len(lacking) > 0
    else:
        report = engine.build(work, out)
        assert report.encoded == len(lacking)
    data = log.read_bytes()
    encoded = [data[i : i + Logging.ROW] for i in range(0, len(data), Logging.ROW)]
    assert set(encoded) <= lacking
    if dies_at is None:
        assert set(encoded) == lacking
    for path in work.wanted.folder.glob("[!.]*.parquet"):
        shards.open_shard(path, shards.LATENTS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CHANGE, min_size=1, max_size=12), st.sampled_from([0.0, 1000.0]))
def test_any_history_ends_as_a_clean_run(tmp_path_factory, history, part_seconds):
    root = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROWS_PER_SHARD", 8)
        patch.setattr(engine, "PART_SECONDS", part_seconds)
        patch.setenv("PIPELINE_STORE", str(root / "store"))
        data, fingerprint = Data(), FINGERPRINTS[0]
        for kind, value in history:
            if kind == "another VAE":
                fingerprint = FINGERPRINTS[value]
            elif kind == "killed run":
                run(data.files.values(), fingerprint, root / "out", dies_at=value, kill=True, views=data.views)
            elif kind == "failing run":
                run(data.files.values(), fingerprint, root / "out", dies_at=value, views=data.views)
            elif kind == "run":
                run(reversed(data.files.values()), fingerprint, root / "out", batch_size=value, views=data.views)
            else:
                data.change(kind, value)
        run(data.files.values(), fingerprint, root / "out", views=data.views)
        patch.setenv("PIPELINE_STORE", str(root / "clean store"))
        run(sorted(data.files.values()), fingerprint, root / "clean", views=data.views)
    assert folder_bytes(root / "out") == folder_bytes(root / "clean")
    rows = {latent_row(image, False, 0) for image in data.files.values()}
    found = rows_of((root / "out").iterdir())
    assert sorted(row[:16] for row in found) == sorted([*rows] * data.views) and len({*found}) == len(found)
