"""Data that lie far away: the same tables as of the same files on this disk, and what is asked of the server for them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.data import examine, far, tar
from pipeline.data.sources import open_source
from tests.data import far_servers
from tests.data.data_sets import contents, picture, write_folder, write_parquet, write_tar
from tests.data.far_samples import KEY, PICTURES, SECRET, alike, put, run, tars
from tests.project import ROOT


def test_tars_in_s3_are_read_as_those_on_a_disk(wire, server, tmp_path):
    folder = tars(tmp_path / "set")
    (folder / "deep").mkdir()
    shutil.move(folder / "1.tar", folder / "deep/1.tar")
    write_parquet(folder / "0.parquet", {"url": ["x"]})
    (folder / "notes.md").write_text("x")
    put(server, folder, "tars")
    near, away = run(str(folder), tmp_path / "near"), run("s3://tars/set", tmp_path / "far")
    assert contents(tmp_path / "near") == contents(tmp_path / "far")
    assert near.used == away.used == 16 and away.others == near.others == ["notes.md"]
    source = open_source("s3://tars/set/")
    for row in pq.read_table(tmp_path / "far/images.parquet").to_pylist():
        assert source.read(row["path"]) == open_source(str(folder)).read(row["path"])


def test_parquet_in_s3_is_read_as_on_a_disk(wire, server, tmp_path):
    images = [{"bytes": data, "path": None} for data in PICTURES.values()]
    write_parquet(tmp_path / "set/a.parquet", {"image": images, "text": list(PICTURES)}, row_group_size=3)
    put(server, tmp_path / "set", "parquet")
    run(str(tmp_path / "set"), tmp_path / "near")
    assert run("s3://parquet/set/a.parquet", tmp_path / "far").used == 8
    run("s3://parquet/set", tmp_path / "folder")
    assert contents(tmp_path / "near") == contents(tmp_path / "folder")


def test_of_parquet_far_away_a_row_group_is_asked_for_and_not_the_file(wire, server, tmp_path, monkeypatch):
    images = [picture(number, 120, 100) for number in range(20)]
    file = write_parquet(tmp_path / "set/0.parquet", {"image": images, "text": ["x"] * 20}, row_group_size=1)
    put(server, tmp_path / "set", "rows")
    asked, plain = [], far.read
    monkeypatch.setattr(far, "read", lambda url, size, at: asked.append(size) or plain(url, size, at))
    source = open_source("s3://rows/set")
    assert source.read("0.parquet#13") == images[13]
    assert len(images[13]) < sum(asked) < file.stat().st_size / 3
    asked.clear()
    assert [len(part.texts) for part in source.parts()] == [20]
    assert sum(asked) < file.stat().st_size / 3  # captions, without the pictures between them


def test_a_second_index_reads_no_byte_of_an_unchanged_tar(wire, server, tmp_path, monkeypatch):
    put(server, tars(tmp_path / "set"), "again")
    assert run("s3://again/set", tmp_path / "a").read == 16
    with monkeypatch.context() as patched:
        patched.setattr(examine, "_look_at", None)
        patched.setattr(tar, "walk", None)
        first = contents(tmp_path / "a")
        reads = []
        plain = far.read
        patched.setattr(far, "read", lambda url, size, at: reads.append((url, size)) or plain(url, size, at))
        assert run("s3://again/set", tmp_path / "b").read == 0
        assert contents(tmp_path / "b") == first and reads == []
    write_tar(tmp_path / "new/1.tar", {"x.png": picture(999, 70, 60)})
    import boto3

    client = boto3.client("s3", endpoint_url=server, aws_access_key_id=KEY, aws_secret_access_key=SECRET)
    client.put_object(Bucket="again", Key="set/1.tar", Body=(tmp_path / "new/1.tar").read_bytes())
    summary = run("s3://again/set", tmp_path / "c")
    assert (summary.files, summary.read) == (9, 1)


def test_web_tars_by_a_pattern_are_read_by_range(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    folder, asked = tars(tmp_path / "set", 3), []
    run(str(folder), tmp_path / "near")
    with far_servers.web({f"x/{n}.tar": (folder / f"{n}.tar").read_bytes() for n in range(3)}, asked) as address:
        assert run(address + "/x/{0..2}.tar", tmp_path / "far").used == 24
        near, away = (pq.read_table(tmp_path / name / "images.parquet") for name in ("near", "far"))
        assert near.drop_columns("path") == away.drop_columns("path")
        assert away["path"].to_pylist() == [f"{address}/x/{path}" for path in near["path"].to_pylist()]
        assert asked and all(span.startswith("bytes=") for _, span in asked)
        (tmp_path / "web.urls").write_text(f"# two of them\n{address}/x/{{0,2}}.tar\n\n{address}/x/1.tar\n")
        run(str(tmp_path / "web.urls"), tmp_path / "listed")
        assert contents(tmp_path / "listed") == contents(tmp_path / "far")
    assert not list((tmp_path / "store").rglob("*.png")) and sum(
        file.stat().st_size for file in (tmp_path / "store").rglob("*") if file.is_file()
    ) < sum(map(len, PICTURES.values()))  # no copy on this disk


def test_a_tar_of_the_same_size_is_another_by_its_etag(wire, server, tmp_path):
    old, new = alike(0), alike(100)
    assert {name: len(data) for name, data in old.items()} == {name: len(data) for name, data in new.items()}
    changed = old | {"set/1.tar": new["set/1.tar"]}
    write_folder(tmp_path / "near", changed)
    run(str(tmp_path / "near/set"), tmp_path / "of the new")
    put(server, write_folder(tmp_path, old) / "set", "alike")
    held = dict(old)
    with far_servers.web(held) as address:
        urls = {"s3": "s3://alike/set", "web": address + "/set/{0..1}.tar"}
        assert {name: run(url, tmp_path / name).read for name, url in urls.items()} == dict.fromkeys(urls, 16)
        put(server, write_folder(tmp_path, changed) / "set", "alike")
        held |= changed
        assert {name: run(url, tmp_path / name).read for name, url in urls.items()} == dict.fromkeys(urls, 8)
        assert {name: run(url, tmp_path / name).read for name, url in urls.items()} == dict.fromkeys(urls, 0)
    assert contents(tmp_path / "s3") == contents(tmp_path / "of the new")
    images = [pq.read_table(tmp_path / name / "images.parquet")["image"] for name in ("web", "of the new")]
    assert images[0] == images[1]


# In a process of its own, as the hub's library asks once where the hub is.
OF_HUB = """
import sys
from pathlib import Path
from tests.data.far_samples import run
for line in sys.stdin:
    url, out = line.split()
    print(run(url, Path(out)).read, flush=True)
"""


def test_the_hub_is_read_as_a_disk(tmp_path, monkeypatch):
    """Tars, those in folders below, and Parquet, over its API; and what changes there while a process runs is seen."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    files, asked, held = alike(0), [], {}
    files["set/deep/1.tar"] = files.pop("set/1.tar")
    images = [{"bytes": data, "path": None} for data in PICTURES.values()]
    write_parquet(tmp_path / "a.parquet", {"image": images, "text": list(PICTURES)}, row_group_size=3)
    files |= {f"table/{n}.parquet": (tmp_path / "a.parquet").read_bytes() for n in range(3)}

    def read(*names: str) -> list[int]:
        for name in names:
            print(f"hf://datasets/owner/name@main/{name}", tmp_path / Path(name).name, file=child.stdin, flush=True)
        return [int(child.stdout.readline()) for _ in names]

    def near(name: str) -> dict[str, bytes]:
        write_folder(tmp_path / "near", files)
        run(str(tmp_path / "near" / name), tmp_path / f"near {name}")
        return contents(tmp_path / f"near {name}")

    with far_servers.web(held, asked) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        held |= far_servers.hub("owner/name", "main", files)
        with subprocess.Popen(
            [sys.executable, "-c", OF_HUB], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert read("set", "table", "table/{0..2}.parquet") == [16, 24, 24]
            assert contents(tmp_path / "set") == near("set") and contents(tmp_path / "table") == near("table")
            by_pattern = pq.read_table(tmp_path / "{0..2}.parquet/images.parquet")
            assert by_pattern["image"] == pq.read_table(tmp_path / "table/images.parquet")["image"]
            spans = [span.removeprefix("bytes=").split("-") for path, span in asked if path.endswith(".tar")]
            tars = sum(len(data) for name, data in files.items() if name.endswith(".tar"))
            assert sum(int(last) - int(first) + 1 for first, last in spans) < 2 * tars  # each once for its headers
            asked.clear()
            files["set/0.tar"] = alike(100)["set/0.tar"]
            held |= far_servers.hub("owner/name", "main", files)
            assert read("set", "table/{0..2}.parquet") == [8, 0]
            assert contents(tmp_path / "set") == near("set")
            assert {path.rpartition("/")[2] for path, _ in asked if path.endswith(".tar")} == {"0.tar"}
            listed = [path.partition("?")[0].rpartition("/")[2] for path, _ in asked if "/tree/" in path]
            assert listed == ["set", "table"]  # each once: not for each file of the pattern, and not for reading
            child.stdin.close()


def test_a_damaged_tar_far_away_is_damaged_as_on_a_disk(wire, server, tmp_path):
    folder = tars(tmp_path / "set")
    data = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(data[:20_000] + b"\0" * 3000 + data[23_000:50_000])
    (folder / "2.tar").write_bytes(b"")
    put(server, folder, "damaged")
    near, away = run(str(folder), tmp_path / "near"), run("s3://damaged/set", tmp_path / "far")
    assert near.lost == away.lost and len(near.lost) > 1
    assert contents(tmp_path / "near") == contents(tmp_path / "far")


def test_workers_read_far_data(wire, server, tmp_path, monkeypatch):
    """In processes of their own."""
    put(server, tars(tmp_path / "set", 3), "workers")
    monkeypatch.setattr(examine, "_FEW", 0)
    run(str(tmp_path / "set"), tmp_path / "near")
    assert run("s3://workers/set", tmp_path / "far").used == 24
    assert contents(tmp_path / "near") == contents(tmp_path / "far")
    assert os.environ["AWS_ENDPOINT_URL"] == wire.address
