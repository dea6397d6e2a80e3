"""The doctor on disks: room for what a run writes, and how files get from one place to the other."""

from collections import namedtuple

import pytest

from pipeline.doctor import disks
from pipeline.doctor.finding import BAD, GOOD, look
from pipeline.planning import disk as planned
from pipeline.planning.run import from_params
from tests.doctor.doctor_samples import only, sdxl

Usage = namedtuple("Usage", "free")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    return tmp_path


def test_what_sdxl_takes_on_a_disk():
    run = from_params(sdxl(), 1000)
    parts = disks.needs(run)
    assert parts.items() >= planned.disk_bytes(run).items() and len(parts) == len(planned.disk_bytes(run)) + 1
    assert sum(name.startswith(disks._IN_STORE) for name in parts) == 2


@pytest.mark.parametrize(("free", "state"), [(1e9, BAD), (1e13, GOOD)])
def test_room_on_the_disk(here, monkeypatch, free, state):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(int(free)))
    found = sdxl()
    finding = only(disks.disk(from_params(found, 1000), linked=True))
    assert finding.state == state and f"{free / 1e9:.1f} GB are free for outs, store, DVC's cache" in finding.found
    need = sum(disks.needs(from_params(found, 1000)).values())
    wanted = f"{need / 1e9:.1f} GB free, {(need - free) / 1e9:.1f} more" if state == BAD else ""
    assert finding.wanted == wanted
    assert (state == GOOD) == (not finding.do) and "PIPELINE_STORE" in finding.do or state == GOOD


def test_files_that_are_copied_count_in_each_place(here, monkeypatch):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(10**15))
    found = sdxl()
    run = from_params(found, 1000)
    monkeypatch.setattr(disks, "_mount", lambda folder: ("/store" if "store" in str(folder) else "/", "ext4"))
    (here / "store").mkdir()
    parts = disks.needs(run)
    several = sum(size for name, size in parts.items() if not name.startswith(disks._IN_STORE))
    findings = disks.disk(run, linked=False)
    assert f"takes {2 * several / 1e9:.1f} more" in findings[0].found and "for store and" in findings[1].found
    assert f"takes {sum(parts.values()) / 1e9:.1f} more" in findings[1].found


def test_caches_that_are_there_need_no_room(here, monkeypatch):
    monkeypatch.setattr(disks.psutil, "disk_usage", lambda path: Usage(10**15))
    found = sdxl()
    run = from_params(found, 1000)
    before = only(disks.disk(run, True)).found
    (here / "outs/latents").mkdir(parents=True)
    with open(here / "outs/latents/a.parquet", "wb") as file:
        file.truncate(3 * 10**9)  # without blocks
    after = only(disks.disk(run, True)).found
    assert before != after and f"takes {sum(disks.needs(run).values()) / 1e9 - 3:.1f} more" in after


@pytest.mark.parametrize(
    ("mounts", "types", "reflinks", "said"),
    [
        ({}, "hardlink,copy", False, "hardlink between"),
        ({}, "copy", False, "DVC's cache.type is copy: it copies"),
        ({}, None, False, "DVC's cache.type is reflink, copy: it copies"),
        ({}, None, True, "reflink between"),
        ({"store": "/other"}, "hardlink", False, "between store and outs and between store and DVC's cache "),
    ],
)  # fmt: skip
def test_links(here, monkeypatch, mounts, types, reflinks, said):
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text(f"[cache]\n    type = {types}\n" if types else "")
    (here / "store").mkdir()
    if reflinks:
        monkeypatch.setattr(disks, "_link", lambda one, other: "reflink")
    else:
        monkeypatch.setattr(disks, "_mount", lambda folder: (mounts.get(folder.name, "/"), "ext4"))
    finding = only(disks.links())
    assert said in finding.found and (finding.state == GOOD) == said.endswith("between")
    assert finding.state == GOOD or finding.do
    assert sorted(path.name for path in here.iterdir()) == [".dvc", "store"] and not list((here / "store").iterdir())


def test_a_store_that_cannot_be_written_and_a_broken_config(here, monkeypatch):
    (here / ".dvc").mkdir()
    (here / ".dvc/config").write_text("[cache]\n    type = teleport\n")
    assert ".dvc/config cannot be read" in only(look("links", disks.links)).found
    (here / ".dvc/config").write_text("")

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disks.tempfile, "TemporaryFile", refuse)
    found = only(look("links", disks.links))
    assert found.state == BAD and "Read-only file system" in found.found
