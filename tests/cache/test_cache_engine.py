"""The incremental build: what is encoded, written and linked."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import locks
from pipeline.cache.building import engine, shelf
from pipeline.cache.format import shards
from pipeline.cache.format.names import latent_row
from pipeline.stage import StageError
from tests.cache.cache_jobs import Encoder, content, folder_bytes, job
from tests.cache.cache_samples import read_all


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 16)


def run(tmp_path, numbers, **changes):
    encoder = Encoder()
    report = engine.build(job(numbers, encoder, **changes), tmp_path / "out")
    assert report.encoded == len(encoder.encoded)
    return report


def test_the_out_holds_every_row_in_its_shard(tmp_path):
    run(tmp_path, range(100))
    names = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in names] == [shards.shard_name(i, 8) for i in range(8)]
    rows = np.concatenate([shards.open_shard(path, shards.LATENTS).columns["row"] for path in names])
    assert [row.tobytes() for row in rows] == sorted(latent_row(content(n), False, 0) for n in range(100))


def test_the_bytes_do_not_depend_on_order_batch_mates_workers_or_history(tmp_path, monkeypatch):
    run(tmp_path, range(100))
    first = folder_bytes(tmp_path / "out")
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "other"))
    run(tmp_path, list(range(50, 100)), workers=1)
    run(tmp_path, list(reversed(range(100))) + [3, 3, 7], workers=3)
    assert folder_bytes(tmp_path / "out") == first


def test_a_second_run_encodes_and_writes_nothing(tmp_path):
    run(tmp_path, range(60))
    again = engine.build(
        job(range(60), Encoder(), make_encoder=lambda: pytest.fail("the encoder was made")), tmp_path / "out"
    )
    assert (again.encoded, again.shards_written) == (0, 0)


def test_one_added_picture_is_encoded_and_its_shard_written(tmp_path):
    run(tmp_path, range(60))
    before = folder_bytes(tmp_path / "out")
    report = run(tmp_path, range(61))
    assert (report.encoded, report.shards_written) == (1, 1)
    after = folder_bytes(tmp_path / "out")
    assert sum(before[name] != after[name] for name in before) == 1


def test_removed_and_returning_pictures_are_not_encoded(tmp_path):
    run(tmp_path, range(60))
    first = folder_bytes(tmp_path / "out")
    assert run(tmp_path, range(1, 60)).encoded == 0
    report = run(tmp_path, range(60))
    assert (report.encoded, report.shards_written) == (0, 0)
    assert folder_bytes(tmp_path / "out") == first


def test_crossing_a_shard_count_encodes_only_the_new(tmp_path):
    run(tmp_path, range(64))
    assert len(list((tmp_path / "out").iterdir())) == 4
    report = run(tmp_path, range(65))
    assert len(list((tmp_path / "out").iterdir())) == 8
    assert (report.encoded, report.shards_written) == (1, 8)


def test_rows_of_another_fingerprint_are_not_used_and_are_kept(tmp_path):
    run(tmp_path, range(20))
    assert run(tmp_path, range(20), fingerprint={"vae": "1" * 32}).encoded == 20
    assert run(tmp_path, range(20)).encoded == 0


def test_a_row_of_another_target_size_is_not_used(tmp_path):
    run(tmp_path, range(20))
    other = job(range(20), Encoder())
    object.__setattr__(other.wanted, "groups", other.wanted.groups[:, ::-1].copy())

    def prepare(index):
        input_, numbers = job(range(20), Encoder()).prepare(index)
        height, width = other.wanted.groups[index].tolist()
        return np.zeros((8, height // 8, width // 8), np.uint8), {
            **numbers,
            "target_height": height,
            "target_width": width,
        }

    def finish(index, outputs):
        height, width = other.wanted.groups[index].tolist()
        return {
            "latent": bytes(16 * height * width // 64),
            "channels": 8,
            "latent_height": height // 8,
            "latent_width": width // 8,
        }

    object.__setattr__(other, "prepare", prepare)
    object.__setattr__(other, "finish", finish)
    square = int((other.wanted.groups[:, 0] == other.wanted.groups[:, 1]).sum())
    assert engine.build(other, tmp_path / "out").encoded == 20 - square


def test_out_and_store_share_their_bytes(tmp_path):
    run(tmp_path, range(20))
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_nlink == 2
        assert path.stat().st_mode & 0o222 == 0


def test_batches_are_padded_to_one_shape_and_filled_from_later_shards(tmp_path):
    shapes = []

    class Watching(Encoder):
        def __call__(self, inputs):
            shapes.append(inputs.shape)
            return super().__call__(inputs)

    encoder = Watching()
    engine.build(job(range(100), encoder, batch_size=8), tmp_path / "out")
    assert {shape[0] for shape in shapes} == {8} and len(set(shapes)) == 2
    kinds = [content(n)[0] % 2 for n in range(100)]
    assert encoder.calls == -(-kinds.count(0) // 8) + -(-kinds.count(1) // 8)


def test_a_picture_that_fails_is_named_and_the_others_are_kept(tmp_path):
    good = job(range(30), Encoder())
    bad = 20

    def finish(index, outputs):
        outputs = (np.full_like(outputs[0], np.nan),) if index == bad else outputs
        return good.finish(index, outputs)

    with pytest.raises(StageError, match="picture 20: the encoder's result is NaN; mend it"):
        engine.build(job(range(30), Encoder(), batch_size=1, finish=finish), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = run(tmp_path, range(30), batch_size=1)
    assert 0 < report.encoded <= 30 - 8


@pytest.mark.parametrize(
    "value, reason", [(np.nan, "NaN"), (-np.inf, "infinite"), (65520.0, "too large for float16"), (65504.0, None)]
)
def test_what_float16_cannot_hold_is_refused(value, reason):
    array = np.array([[1.0, value]], np.float32)
    if reason is None:
        assert np.frombuffer(engine.as_float16(array, "p", "a"), np.float16).tolist() == [1.0, 65504.0]
    else:
        with pytest.raises(StageError, match=f"p: the encoder's result is {reason}; a"):
            engine.as_float16(array, "p", "a")


def test_a_damaged_row_in_the_store_is_encoded_again(tmp_path):
    run(tmp_path, range(12))
    work = job(range(13), Encoder())
    (path,) = work.wanted.folder.iterdir()
    shard = shards.open_shard(path, shards.LATENTS)
    data = bytearray(path.read_bytes())
    data[int(shard.offsets["latent"][3])] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert engine.build(work, tmp_path / "out").encoded == 2  # the new one and the damaged one
    assert len(rows_of(tmp_path / "out" / shards.shard_name(0, 1))) == 13


def rows_of(path):
    return [row["row"] for row in read_all(path)]


def test_a_second_run_on_one_key_waits_and_finds_the_work_done(tmp_path):
    work, encoder = job(range(10), Encoder()), Encoder()
    with ThreadPoolExecutor(1) as second:
        with locks.lock(f"cache-{work.wanted.key}", "fills the same cache"):
            waiting = second.submit(engine.build, job(range(10), encoder), tmp_path / "out")
            time.sleep(1)
            assert not waiting.done() and encoder.calls == 0
            for path in work.wanted.paths:  # as the first run does
                shelf.put(path, shards.LATENTS, [], work.wanted.fingerprint)
        assert waiting.result(timeout=30).encoded == 0
    assert len(list((tmp_path / "out").iterdir())) == len(work.wanted.paths)


def test_parts_are_gone_when_their_shards_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "PART_SECONDS", 0.0)
    work = job(range(100), Encoder())
    engine.build(work, tmp_path / "out")
    assert not list(work.wanted.folder.glob("part-*"))
    assert len(list(work.wanted.folder.iterdir())) == 8


def test_nothing_to_encode_is_an_error(tmp_path):
    with pytest.raises(StageError, match="no rows"):
        engine.build(job([], Encoder()), tmp_path / "out")


def test_a_shard_may_be_empty(tmp_path):
    """Pictures chosen so that one of four shards has none."""
    low = [n for n in range(400) if latent_row(content(n), False, 0)[0] < 0xC0][:40]
    for _ in range(2):
        run(tmp_path, low)
        sizes = [len(shards.open_shard(path, shards.LATENTS)) for path in sorted((tmp_path / "out").iterdir())]
        assert len(sizes) == 4 and sizes[3] == 0 and all(sizes[:3])
        run(tmp_path, low[:-1])
