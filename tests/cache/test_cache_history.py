"""Whatever happened before, the cache ends as one clean run leaves it, and nothing is encoded that the store holds."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cache.building import engine
from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from tests.cache import cache_children
from tests.cache.cache_children import Logging, finish
from tests.cache.cache_jobs import content, folder_bytes, job

FINGERPRINTS = [{"vae": "0" * 32}, {"vae": "1" * 32}]

CHANGE = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 30)),
    st.tuples(st.just("remove"), st.integers(0, 10**6)),
    st.tuples(st.just("remove many"), st.integers(0, 10**6)),
    st.tuples(st.just("rename"), st.integers(0, 10**6)),
    st.tuples(st.just("duplicate"), st.integers(0, 10**6)),
    st.tuples(st.just("edit"), st.integers(0, 10**6)),
    st.tuples(st.just("another VAE"), st.integers(0, 1)),
    st.tuples(st.just("killed run"), st.integers(0, 12)),
    st.tuples(st.just("failing run"), st.integers(0, 12)),
    st.tuples(st.just("run"), st.integers(1, 5)),
)


class Data:
    """A folder of pictures: path -> number of its content."""

    def __init__(self):
        self.files: dict[str, int] = {"first": 0}
        self.made = 0

    def new(self) -> int:
        self.made += 1
        return self.made

    def change(self, kind: str, value: int) -> None:
        paths = sorted(self.files)
        chosen = paths[value % len(paths)]
        if kind == "add":
            self.files |= {f"added {n}": n for n in (self.new() for _ in range(value))}
        elif kind == "remove" and len(paths) > 1:
            del self.files[chosen]
        elif kind == "remove many":
            self.files = {path: self.files[path] for path in paths[value % len(paths) :]}
        elif kind == "rename":
            self.files[f"renamed {self.new()}"] = self.files.pop(chosen)
        elif kind == "duplicate":
            self.files[f"copy {self.new()}"] = self.files[chosen]
        elif kind == "edit":
            self.files[chosen] = self.new()


def stored_rows(wanted) -> set[bytes]:
    paths = wanted.folder.glob("[!.]*.parquet")
    return {row.tobytes() for path in paths for row in shards.open_shard(path, shards.LATENTS).columns["row"]}


def run(numbers, fingerprint, out, dies_at: int | None = None, kill: bool = False, batch_size: int = 4) -> None:
    """One run. Checks that it encodes exactly the contents that the store lacks (a dying run: none that it has)."""
    log = out.parent / "encoded"
    log.write_bytes(b"")

    work = job(numbers, Logging(log, dies_at, kill=False), fingerprint, batch_size=batch_size)
    lacking = {row.tobytes() for row in work.wanted.rows} - stored_rows(work.wanted)
    if kill:
        finish([cache_children.start(cache_children.killed, list(numbers), fingerprint, out, log, dies_at, batch_size)])
    elif dies_at is not None:
        try:
            engine.build(work, out)
        except RuntimeError:
            assert len(lacking) > 0
    else:
        report = engine.build(work, out)
        assert report.encoded == len(lacking)
    data = log.read_bytes()
    encoded = [data[i : i + 16] for i in range(0, len(data), 16)]
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
                run(data.files.values(), fingerprint, root / "out", dies_at=value, kill=True)
            elif kind == "failing run":
                run(data.files.values(), fingerprint, root / "out", dies_at=value)
            elif kind == "run":
                run(reversed(data.files.values()), fingerprint, root / "out", batch_size=value)
            else:
                data.change(kind, value)
        run(data.files.values(), fingerprint, root / "out")
        patch.setenv("PIPELINE_STORE", str(root / "clean store"))
        run(sorted(data.files.values()), fingerprint, root / "clean")
    assert folder_bytes(root / "out") == folder_bytes(root / "clean")
    rows = {latent_row(content(n), False, 0) for n in data.files.values()}
    found = [row for path in (root / "out").iterdir() for row in shards.open_shard(path, shards.LATENTS).columns["row"]]
    assert sorted(row.tobytes() for row in found) == sorted(rows)
