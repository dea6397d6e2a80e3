"""Broken and slow connections to data that lie far away: what was asked for comes in the end, or an error, and nothing is
lost."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.building import engine, latents
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.data import examine, far, parquet
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from tests.data import far_servers
from tests.data.data_sets import contents, picture, write_parquet
from tests.data.far_samples import put, run, tars


@pytest.mark.parametrize("fault", ["closed", "cut", "slow"])
def test_what_breaks_now_and_then_is_asked_for_again(wire, server, tmp_path, monkeypatch, fault):
    put(server, tars(tmp_path / "set"), f"shaky-{fault}")
    run(str(tmp_path / "set"), tmp_path / "near")
    open_source(f"s3://shaky-{fault}/set")  # boto takes a second to begin
    if fault == "slow":
        monkeypatch.setattr(far, "SECONDS", 1.0)
    wire.breaks(fault, 2)
    assert run(f"s3://shaky-{fault}/set", tmp_path / "far").used == 16
    assert wire.broken >= 2 and contents(tmp_path / "far") == contents(tmp_path / "near")


@pytest.mark.parametrize("fault", ["closed", "slow"])
def test_what_breaks_for_good_is_an_error_and_nothing_is_lost(wire, server, tmp_path, monkeypatch, fault):
    bucket = f"gone-{fault}"
    put(server, tars(tmp_path / "set"), bucket)
    monkeypatch.setattr(far, "ATTEMPTS", 2)
    monkeypatch.setattr(far, "SECONDS", 3.0)
    source, seen = open_source(f"s3://{bucket}/set"), []
    plain = examine._look_at

    def look(data, max_pixels):
        seen.append(data)
        if len(seen) == 11:
            wire.breaks(fault)
        return plain(data, max_pixels)

    monkeypatch.setattr(examine, "_look_at", look)
    monkeypatch.setattr(examine, "_CHUNK", 1)
    with pytest.raises(
        SourceError, match=rf"s3://{bucket}/set/1.tar cannot be read \(bytes .*tried 2 times.*is remembered"
    ):
        index(source, tmp_path / "far", buckets(64, 32), 16, None, 10**6, 1.0, 1)
    assert not (tmp_path / "far").exists()
    wire.times = 0
    assert run(f"s3://{bucket}/set", tmp_path / "far").read == 16 - 11


def test_an_answer_of_the_wrong_length_is_asked_for_again_and_never_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(far, "WAITS", 0.01)

    class Files:
        async_impl = False
        answers = [b"ab", b"abcd", b"abc"]

        def cat_file(self, url, start, end):
            return self.answers.pop(0)

    files = Files()
    monkeypatch.setattr(far, "_filesystem", lambda scheme: files)
    assert far.read("s3://a/b.tar", 3, 0) == b"abc" and files.answers == []
    files.answers = [b"ab"] * 10
    with pytest.raises(SourceError, match="2 bytes came, of 3"):
        far.read("s3://a/b.tar", 3, 0)
    assert len(files.answers) == 10 - far.ATTEMPTS


class Vae:
    """Notes how many pictures went in, and breaks the wire at one of them, or never."""

    def __init__(self, at: int = -1, wire: far_servers.Wire | None = None):
        self.encoded, self._at, self._wire = 0, at, wire

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        if self.encoded == self._at:
            self._wire.breaks("closed")
        self.encoded += len(pixels)
        return np.concatenate([pixels[:, :, ::8, ::8]] * 3, axis=1)[:, :8]


HOW = Preparation("moments", "center", 1, False, "area", (255, 255, 255))


def cache(url: str, index_folder: Path, out: Path, vae: Vae) -> int:
    """-> rows encoded, which are those that the store lacked."""
    job = latents.make_job(
        index_folder / "images.parquet", open_source(url), HOW.fingerprint, HOW, lambda: vae, 1, workers=2
    )
    held = sum(len(shards.open_shard(path, shards.LATENTS)) for path in job.wanted.folder.glob("[!.]*.parquet"))
    report = engine.build(job, out)
    assert report.encoded == vae.encoded == len(job.wanted.rows) - held
    return report.encoded


@pytest.mark.parametrize("form", ["tars", "parquet"])
def test_latents_of_far_data_are_those_of_a_disk_though_connections_break(wire, server, tmp_path, monkeypatch, form):
    folder = tars(tmp_path / "set")
    if form == "parquet":
        images = [picture(number, 70, 60) for number in range(16)]
        shutil.rmtree(folder)
        write_parquet(folder / "0.parquet", {"image": images, "text": ["x"] * 16}, row_group_size=1)
    put(server, folder, f"cached-{form}")
    url = f"s3://cached-{form}/set"
    run(str(folder), tmp_path / "near")
    assert cache(str(folder), tmp_path / "near", tmp_path / "near latents", Vae()) == 16
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "another store"))
    monkeypatch.setattr(far, "ATTEMPTS", 2)
    parquet._pictures.cache_clear()
    run(url, tmp_path / "far")
    broken = Vae(3, wire)
    with pytest.raises(SourceError, match=rf"{url}/.* cannot be read \(bytes .*tried 2 times.*is remembered"):
        cache(url, tmp_path / "far", tmp_path / "latents", broken)
    assert 3 < broken.encoded < 16 and not (tmp_path / "latents").exists()
    wire.breaks("cut", 1)  # of what is asked for next, which is asked for again
    assert cache(url, tmp_path / "far", tmp_path / "latents", Vae()) == 16 - broken.encoded
    assert wire.times == 0 and contents(tmp_path / "latents") == contents(tmp_path / "near latents")
