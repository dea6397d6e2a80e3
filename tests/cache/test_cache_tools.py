"""ls, verify, show and gc."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import locks, store
from pipeline.cache import __main__ as tools
from pipeline.cache.building import engine, latents
from pipeline.cache.format import shards, stand_in
from pipeline.cache.format.preparation import Preparation
from pipeline.cache.tools import sheet, verify
from pipeline.cache.tools.collect import collect
from pipeline.cache.tools.sheet import contact_sheet
from pipeline.data.sources import open_source
from pipeline.stage import StageError
from tests.cache.cache_jobs import Encoder, job
from tests.cache.cache_samples import FINGERPRINT, latent

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 16)
    monkeypatch.chdir(tmp_path)


def build(numbers, **changes) -> engine.Report:
    return engine.build(job(numbers, Encoder(), **changes), tools.OUTS["latents"])


def test_verify_finds_any_flipped_byte(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [latent(hashlib.blake2b(bytes([n]), digest_size=16).digest(), (16, 8)) for n in range(2)]
    shards.write(path, shards.LATENTS, rows, FINGERPRINT)
    good = path.read_bytes()
    assert verify.damage(path) is None
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << place % 8)]) + good[place + 1 :])
        assert verify.damage(path) is not None, f"byte {place}"
    path.write_bytes(good + b"\0")
    assert verify.damage(path) is not None


def test_a_damaged_file_is_removed_under_all_its_names_and_made_again(tmp_path, capsys):
    build(range(40))
    victim = sorted(tools.OUTS["latents"].iterdir())[1]
    cached = tmp_path / ".dvc/cache/files/md5/ab/cdef"
    cached.parent.mkdir(parents=True)
    os.link(victim, cached)
    data = bytearray(victim.read_bytes())
    data[-9] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(data)
    with pytest.raises(SystemExit, match="--remove"):
        tools.check([], remove=False)
    assert victim.exists()
    with pytest.raises(SystemExit, match="dvc repro"):
        tools.check([], remove=True)
    assert not victim.exists() and not cached.exists()
    assert "3 files are whole, 1 are damaged" in capsys.readouterr().out
    report = build(range(40))
    assert report.shards_written == 1 and 0 < report.encoded < 20
    tools.check([], remove=False)


def test_verify_wants_folders(tmp_path):
    with pytest.raises(StageError, match="nowhere is not a folder"):
        tools.check([tmp_path / "nowhere"], remove=False)


def test_ls_counts_rows_shards_and_damage(capsys):
    build(range(40))
    victim = sorted(tools.OUTS["latents"].iterdir())[0]
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-20])
    rest = 40 - len(shards.open_shard(sorted(tools.OUTS["latents"].iterdir())[1], shards.LATENTS))
    tools.list_caches()
    out = capsys.readouterr().out
    assert (
        "outs/latents: latents, " in out and "4 shards" in out and "1 damaged" in out and f'"vae":"{"0" * 32}"' in out
    )
    assert rest < 40


def test_ls_says_why_nothing_is_cached(capsys):
    stand_in.write("outs/text", "text", {"chunks": 1}, (np.zeros(2, np.uint8),), "train.text_encoders is clip_l")
    tools.list_caches()
    said = capsys.readouterr().out
    assert (
        "train.text_encoders is clip_l: captions are encoded while training" in said
        and '"chunks":1' in said.replace(" ", "")
    )
    assert "\n\n" not in said


def test_gc_keeps_the_workspace_and_the_newest_states():
    histories = [range(20), range(20, 40), range(40, 60), range(60, 80)]
    for age, numbers in enumerate(histories):
        build(numbers)
        for path in (store.root() / "cache/states").iterdir():
            if path.stat().st_mtime > 10**9:
                os.utime(path, (1000 + age, 1000 + age))
    build(histories[0])  # the workspace goes back to the oldest, which makes it the newest
    for path in (store.root() / "cache/states").iterdir():
        os.utime(path, (1000, 1000)) if path.stat().st_mtime > 10**9 else None
    freed = collect(tools.OUTS, keep=1)  # the fourth, and the workspace's, whose state is the oldest of all
    assert (freed.files, freed.states) == (4, 3)
    assert build(histories[3]).encoded == 0
    assert build(histories[0]).encoded == 0
    assert build(histories[1]).encoded == 20


def test_gc_says_what_outs_still_hold():
    build(range(20))
    kept = sorted(tools.OUTS["latents"].iterdir())
    os.rename(tools.OUTS["latents"], "elsewhere")
    freed = collect(tools.OUTS, keep=0)
    assert (freed.files, freed.still_linked) == (len(kept), freed.bytes) and freed.bytes > 0


def test_gc_keeps_the_parts_of_unfinished_states(tmp_path):
    work = job(range(40), Encoder())

    def finish(index, outputs):
        if index == 39:
            raise StageError("stopped")
        return work.finish(index, outputs)

    with pytest.raises(StageError, match="stopped"):
        engine.build(job(range(40), Encoder(), finish=finish, batch_size=40), tmp_path / "out")
    parts = list(work.wanted.folder.iterdir())
    assert parts
    collect(tools.OUTS, keep=1)
    assert list(work.wanted.folder.iterdir()) == parts
    freed = collect(tools.OUTS, keep=0)
    assert freed.files == len(parts) and not work.wanted.folder.exists()


def test_gc_leaves_what_a_running_stage_works_on():
    work = job(range(20), Encoder())
    engine.build(work, "elsewhere")
    with locks.lock(f"cache-{work.wanted.key}", "fills the same cache"):
        assert collect(tools.OUTS, keep=0).files == 0
    assert collect(tools.OUTS, keep=0).files == 2


def test_a_contact_sheet_shows_each_picture_beside_its_latent(tmp_path):
    (tmp_path / "images").mkdir()
    names, paths = [], []
    for number in range(6):
        color = tuple(int(x) for x in np.random.default_rng(number).integers(40, 200, 3))
        path = tmp_path / "images" / f"{number}.png"
        Image.new("RGB", (100, 60), color).save(path)
        names.append(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
        paths.append(path.name)
    columns = {"width": 100, "height": 60, "bucket_width": 64, "bucket_height": 32}
    table = {"image": pa.array(names, pa.binary(16)), "path": paths, "rejected": pa.array([None] * 6, pa.string())}
    table |= {"mask": pa.nulls(6, pa.string()), "focus": pa.nulls(6, pa.list_(pa.float32()))}
    table["views"] = pa.nulls(6, pa.list_(pa.int32()))
    pq.write_table(
        pa.table(table | {name: pa.array([value] * 6, pa.int32()) for name, value in columns.items()}), "images.parquet"
    )

    def encode(pixels):
        """The mean of each 8 x 8 block, as three of the mean's channels."""
        b, _, height, width = pixels.shape
        blocks = pixels.reshape(b, 3, height // 8, 8, width // 8, 8).mean(axis=(3, 5))
        return np.concatenate([blocks, np.zeros((b, 5, height // 8, width // 8), np.float32)], axis=1)

    preparation = Preparation("moments", "random", 1, True, "lanczos", (255, 255, 255))
    source = open_source("images")
    engine.build(
        latents.make_job("images.parquet", source, preparation.fingerprint, preparation, lambda: encode, 4, 1),
        tools.OUTS["latents"],
    )
    sheet, lines = contact_sheet(
        tools.OUTS["latents"], tmp_path / "images.parquet", source, lambda z: z[:, :3].repeat(8, 2).repeat(8, 3), 5
    )
    assert len(lines) == 5 and sum("mirrored" in line for line in lines) > 0
    assert all(float(line.split()[-2]) > 40 for line in lines), lines  # one colour survives the block mean
    assert sheet.size == (4 * (2 * 64 + 4) + 4, 2 * (32 + 4) + 4)


def ends(monkeypatch, *arguments: str) -> str:
    """What the command ends with."""
    monkeypatch.setattr(sys, "argv", ["pipeline.cache", *arguments])
    with pytest.raises(SystemExit) as end:
        tools.main()
    return str(end.value)


def test_show_says_which_stage_to_run(monkeypatch):
    shutil.copy2(ROOT / "dvc.yaml", ".")
    for stage, path in (("cache_latents", tools.OUTS["latents"]), ("index", tools.IMAGES), ("convert", tools.VAE)):
        assert f"{path} is not there; run `dvc repro {stage}`" in ends(monkeypatch, "show")
        path.mkdir(parents=True)
    with pytest.raises(StageError, match="outs/latents holds no shards; run `dvc repro cache_latents`"):
        sheet._spread(tools.OUTS["latents"], 1)


@pytest.mark.parametrize("arguments", [("show", "--count", "0"), ("gc", "--keep", "-1"), ("gc", "--keep", "x")])
def test_a_number_of_things_is_one(monkeypatch, capsys, arguments):
    assert ends(monkeypatch, *arguments) == "2"
    least = "1" if arguments[0] == "show" else "0"
    wanted = f"{arguments[1]}: wanted a whole number of {least} to 999,999,999, found '{arguments[2]}'"
    assert wanted in capsys.readouterr().err
