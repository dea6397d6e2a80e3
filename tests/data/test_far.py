"""Data that lie far away: the same tables as of the same files on this disk, what is asked of the server, and what comes
of broken and slow connections."""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline import recorded
from pipeline.cache.building import engine, latents
from pipeline.cache.format import shards
from pipeline.cache.format.preparation import Preparation
from pipeline.data import examine, far, memo, parquet, tar
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.part import SourceError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from pipeline.params import check
from pipeline.stage import StageError
from tests.data import far_servers
from tests.data.data_sets import contents, picture, write_folder, write_parquet, write_tar
from tests.project import ROOT, copy_project

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-bPxRfiCYEXAMPLEKEY"
PICTURES = {f"{n:02}": picture(n, 70, 60) for n in range(8)}


@pytest.fixture(scope="module")
def server():
    with far_servers.s3() as address:
        yield address


@pytest.fixture
def wire(server, monkeypatch, tmp_path):
    """Between s3:// and the server."""
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)
    monkeypatch.setattr(far, "WAITS", 0.01)
    wire = far_servers.Wire(server)
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": wire.address,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    _forget()
    yield wire
    wire.close()
    _forget()


def _forget() -> None:
    """The file systems that were opened, which know the address of their server."""
    from s3fs import S3FileSystem

    far._filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()


def put(server: str, folder: Path, bucket: str) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)  # or it is there
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket=bucket, Key=str(file.relative_to(folder.parent)), Body=file.read_bytes())


def tars(folder: Path, count: int = 2) -> Path:
    """`count` tars of eight pictures each, all different."""
    for number in range(count):
        files = {f"{name}.png": picture(100 * number + int(name), 70, 60) for name in PICTURES}
        write_tar(folder / f"{number}.tar", files | {f"{name}.txt": f"a picture {name}" for name in PICTURES})
    return folder


def run(source: str, out: Path) -> Summary:
    return index(open_source(source), out, buckets(64, 32), 16, None, 10**6, 1.0, 1)


# --- what is read is what lies on a disk


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


def alike(first: int, count: int = 2) -> dict[str, bytes]:
    """Tars of eight pictures each, all of the same sizes in bytes whatever their content."""
    found = {}
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            files = {f"{n}.bmp": picture(first + 8 * number + n, 70, 60, "BMP") for n in range(8)}
            found[f"set/{number}.tar"] = write_tar(Path(folder, "a.tar"), files).read_bytes()
    return found


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
from tests.data.test_far import run
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


SETS = {
    "sets.yaml": "sets:\n- {folder: a, repeats: 3, prefix: sks}\n- {folder: b/1.tar, flip: true}\n- {folder: ., weight: 1}\n",
    "dataset.toml": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\nnum_repeats = 4\nclass_tokens = "x"\n',
    "concepts.json": json.dumps([
        {"path": "a", "balancing": 2.0, "text": {"prompt_source": "concept", "prompt_path": "a/prompts.txt"}},
        {"path": ".", "include_subdirectories": True},
    ]),
}  # fmt: skip


def two_folders(folder: Path, file: str) -> Path:
    tars(folder)
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        shutil.move(folder / f"{number}.tar", folder / name / f"{number}.tar")
    (folder / "a/prompts.txt").write_text("p\nq\n")
    (folder / file).write_text(SETS[file])
    return folder


def run_sets(source: str, out: Path) -> Summary:
    opened = open_source(source)
    return index(opened, out, buckets(64, 32), 16, None, 10**6, 1.0, 1, sets=find(source, opened)[0])


@pytest.mark.parametrize("file", SETS)
def test_files_of_sets_beside_far_data_are_read_as_on_a_disk(wire, server, tmp_path, file):
    folder, bucket = two_folders(tmp_path / "set", file), f"sets-{file.partition('.')[0]}"
    put(server, folder, bucket)
    near, away = run_sets(str(folder), tmp_path / "near"), run_sets(f"s3://{bucket}/set", tmp_path / "far")
    assert contents(tmp_path / "near") == contents(tmp_path / "far")
    assert near.sets == away.sets and len(near.sets) == {"sets.yaml": 3, "dataset.toml": 1, "concepts.json": 2}[file]
    # by a list of URLs, as hf:// has to be given
    (tmp_path / "list.urls").write_text(f"s3://{bucket}/set\n")
    assert run_sets(str(tmp_path / "list.urls"), tmp_path / "listed").sets == near.sets
    listed, own = (pq.read_table(tmp_path / name / "samples.parquet") for name in ("listed", "near"))
    assert listed == own


def test_files_of_sets_on_web_servers_are_named_with_the_tars(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    folder = two_folders(tmp_path / "set", "sets.yaml")
    near = run_sets(str(folder), tmp_path / "near")
    files = {f"x/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with far_servers.web(files, []) as address:
        (tmp_path / "web.urls").write_text(f"{address}/x/{{a/0,b/1}}.tar\n{address}/x/sets.yaml\n")
        assert run_sets(str(tmp_path / "web.urls"), tmp_path / "far").sets == near.sets


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"sets.yaml": "sets: [{folder: c}]"}, r"s3://.*/set/sets.yaml: sets.0.folder: there is no 'c' in s3://"),
        ({"sets.yaml": "sets: [{folder: ../a}]"}, r"'../a' is outside of s3://.*/set; name what is there"),
        ({"sets.yaml": "sets: [{folder: /etc}]"}, r"'/etc' is outside of s3://"),
        ({"sets.yaml": "sets: [{folder: 'file:///etc'}]"}, r"there is no 'file:///etc' in s3://"),
        ({"sets.yaml": "sets: [{folder: a, repeat: 2}]"}, r"s3://.*sets.yaml cannot be used .*\n.*no such key"),
        ({"sets.yaml": "sets: [{folder: a, masks: b}]"}, "masks of tars are their members"),
        ({"sets.yaml": "x" * (1 << 20) + "x"}, r"s3://.*/set/sets.yaml: 1048577 bytes is too long"),
        ({"sets.yaml": b"\xff\xfe\xff"}, "s3://.*/set/sets.yaml: not UTF-8"),
        ({"sets.yaml": SETS["sets.yaml"], "dataset.toml": ""}, "holds s3://.*/dataset.toml and s3://.*keep one of them"),
        ({"concepts.json": '[{"path": "a", "text": {"prompt_source": "concept", "prompt_path": "/etc/passwd"}}]'},
         "'/etc/passwd' is outside of s3://"),
    ],
)  # fmt: skip
def test_files_of_sets_beside_far_data_that_cannot_be_used(wire, server, tmp_path, request, files, message):
    folder, bucket = two_folders(tmp_path / "set", "sets.yaml"), f"bad{request.node.callspec.indices['files']}"
    (folder / "sets.yaml").unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    put(server, folder, bucket)
    with pytest.raises(StageError, match=message):
        run_sets(f"s3://{bucket}/set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_tar_far_away_is_damaged_as_on_a_disk(wire, server, tmp_path):
    folder = tars(tmp_path / "set")
    data = (folder / "0.tar").read_bytes()
    (folder / "0.tar").write_bytes(data[:20_000] + b"\0" * 3000 + data[23_000:50_000])
    (folder / "2.tar").write_bytes(b"")
    put(server, folder, "damaged")
    near, away = run(str(folder), tmp_path / "near"), run("s3://damaged/set", tmp_path / "far")
    assert near.lost == away.lost and len(near.lost) > 1
    assert contents(tmp_path / "near") == contents(tmp_path / "far")


# --- broken and slow connections


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


# --- the cache of latents


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


# --- messages


def test_what_is_not_there_and_what_may_not_be_read_is_said_at_once(wire, server, tmp_path, monkeypatch):
    monkeypatch.setattr(far, "WAITS", 60)  # a second attempt would take a minute
    put(server, tars(tmp_path / "set"), "there")
    for url in ("s3://nowhere/set/0.tar", "s3://there/set/7.tar"):
        with pytest.raises(SourceError, match=f"{url} cannot be found: it is not there"):
            open_source(url)
    with pytest.raises(SourceError, match="holds no .tar and no .parquet"):
        open_source("s3://there/empty")
    with far_servers.web({}) as address, pytest.raises(SourceError, match="x.tar cannot be found: it is not there"):
        open_source(f"{address}/x.tar")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://user:secret@host/a.tar", "can hold a key"),
        ("https://host/a.tar?token=secret", "can hold a key"),
        ("https://host/a.tar#secret", "can hold a key"),
        ("file:///etc/passwd", "file:// is not read"),
        ("local:///etc/a.tar", "local:// is not read"),
        ("simplecache::s3://a/b.tar", "is not read"),
        ("s3://a/b::file:///etc/a.tar", "is not read"),
        ("ftp://host/a.tar", "ftp:// is not read"),
        ("https://host/folder", "web servers list no folders"),
        ("https://host/*.tar", "wanted a folder"),
        ("s3://bucket/a/../../b.tar", "wanted a folder"),
        ("https://host/{..,a}/b.tar", "wanted a folder"),
        ("s3://bucket", "wanted a folder"),
        ("https://host/{9..1}.tar", "is none of"),
        ("https://host/{x}.tar", "is none of"),
        ("https://host/{0..9}{0..99999}.tar", "more than 100,000"),
        ("https://host/{a,a}.tar", "twice"),
        ("gs://bucket/a.tar", "needs the package gcsfs"),
    ],
)
def test_urls_that_are_not_taken(url, message):
    with pytest.raises(SourceError, match=message) as error:
        open_source(url)
    assert "secret" not in str(error.value)


def test_patterns():
    assert far.urls("https://h/{08..11}.tar") == [f"https://h/{n}.tar" for n in ("08", "09", "10", "11")]
    assert far.urls("s3://b/{x,y}/{0..1}.tar") == [f"s3://b/{a}/{n}.tar" for a in "xy" for n in "01"]
    assert far.urls("hf://datasets/o/n@main/a.parquet") == ["hf://datasets/o/n@main/a.parquet"]
    assert len(far.urls("https://h/{00000..00099}.tar")) == 100


def test_pictures_and_compressed_tars_far_away_are_refused(wire, server, tmp_path):
    for bucket, name, message in (("pics", "a.png", "pack them"), ("packed", "a.tar.gz", "compressed tars")):
        (tmp_path / bucket).mkdir()
        (tmp_path / bucket / name).write_bytes(b"x")
        put(server, tmp_path / bucket, bucket)
        with pytest.raises(SourceError, match=message):
            open_source(f"s3://{bucket}/{bucket}")


def test_a_server_that_gives_no_ranges_is_named(tmp_path):
    with far_servers.web({"a.tar": b"x" * 1024}, Accept_Ranges="none") as address:
        with pytest.raises(SourceError, match="gives no parts of a file"):
            open_source(f"{address}/a.tar")


def test_a_file_of_urls_that_is_none(tmp_path):
    for text, message in (("", "wanted a URL"), ("/etc/passwd\n", "wanted a URL"), ("file:///etc/a.tar", "not read")):
        (tmp_path / "a.urls").write_text(text)
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / "a.urls"))


# --- no way from far data to a file of this computer, and no key into what is written


def test_no_local_file_is_reached_by_a_path_in_far_data(wire, server, tmp_path):
    """By names of members, links, and the paths of images.parquet."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(77))
    import tarfile

    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/0.tar", "w") as packed:
        for name, kind in (("/etc/passwd.png", None), (f"..{secret}", None), ("link.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            if kind:
                member.type, member.linkname = kind, str(secret)
                packed.addfile(member)
            else:
                member.size = len(PICTURES["01"])
                packed.addfile(member, io.BytesIO(PICTURES["01"]))
    put(server, tmp_path / "set", "evil")
    source = open_source("s3://evil/set")
    run("s3://evil/set", tmp_path / "out")
    for row in pq.read_table(tmp_path / "out/images.parquet").to_pylist():
        assert source.read(row["path"]) == PICTURES["01"]
    for path in (f"{secret}!x.png", f"../../{secret}", "/etc/hosts", "1.tar!x.png", "file:///etc/a.tar!b.png"):
        with pytest.raises(SourceError):
            source.read(path)


def test_no_key_is_in_what_is_written_or_said(wire, server, tmp_path, capfd, monkeypatch):
    put(server, tars(tmp_path / "set"), "keys")
    summary = run("s3://keys/set", tmp_path / "out")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    _forget()
    wire.breaks("closed")
    monkeypatch.setattr(far, "ATTEMPTS", 2)
    with pytest.raises(SourceError) as error:
        open_source("s3://keys/set")
    said = "".join(capfd.readouterr()) + str(summary) + str(error.value)
    files = [path.read_bytes() for top in ("out", "store") for path in (tmp_path / top).rglob("*") if path.is_file()]
    for word in (KEY, SECRET):
        assert word not in said and not [data for data in files if word.encode() in data]


def test_params_take_a_url():
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for url in ("s3://bucket/set", "https://host/{00000..00099}.tar", "hf://datasets/owner/name"):
        tree["data"]["images"] = url
        assert check(tree, "params.yaml").data.images == url


# --- without its package


def test_an_absent_package_is_named(monkeypatch):
    far._filesystem.cache_clear()
    monkeypatch.setitem(far.SCHEMES, "s3", "no_such_package")
    with pytest.raises(SourceError, match="s3:// needs the package no_such_package"):
        open_source("s3://bucket/a.tar")
    monkeypatch.setitem(far.SCHEMES, "s3", "s3fs")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(SourceError, match="make repro S3=1"):
        open_source("s3://bucket/a.tar")


def test_workers_read_far_data(wire, server, tmp_path, monkeypatch):
    """In processes of their own."""
    put(server, tars(tmp_path / "set", 3), "workers")
    monkeypatch.setattr(examine, "_FEW", 0)
    run(str(tmp_path / "set"), tmp_path / "near")
    assert run("s3://workers/set", tmp_path / "far").used == 24
    assert contents(tmp_path / "near") == contents(tmp_path / "far")
    assert os.environ["AWS_ENDPOINT_URL"] == wire.address


# --- DVC


def watched(root: Path, url: str, server: str) -> Callable[..., str]:
    """A project with data.images far away; -> a function that calls DVC there."""
    copy_project(root)
    shutil.rmtree(root / ".dvc", ignore_errors=True)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("images: data/images", f"images: {url}"))
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "PIPELINE_STORE")} | {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": server,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip

    def dvc(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    dvc("init", "--no-scm", "--quiet")
    return dvc


def test_dvc_runs_index_again_when_the_data_far_away_change(server, tmp_path):
    """dvc.yaml's own dependency on data.images, by the ETags of the listing; what is edited while index runs is seen too."""
    put(server, tars(tmp_path / "set"), "watched")
    dvc = watched(tmp_path / "project", "s3://watched/set", server)
    assert "16 of 16 pictures are used" in dvc("repro", "index")
    assert "didn't change" in dvc("repro", "index")
    write_tar(tmp_path / "more/set/1.tar", {"x.png": picture(500, 70, 60)})
    put(server, tmp_path / "more/set", "watched")
    said = dvc("repro", "index")
    assert "9 of 9 pictures are used" in said and "1 picture was read" in said
    lock = (tmp_path / "project/dvc.lock").read_text()
    assert "s3://watched/set" in lock and KEY not in lock and SECRET not in lock


def test_dvc_runs_index_again_when_a_tar_on_a_web_server_changes(server, tmp_path):
    """By its ETag alone: the new one is as long."""
    held = {"a.tar": alike(0)["set/0.tar"]}
    with far_servers.web(held) as address:
        dvc = watched(tmp_path / "project", f"{address}/a.tar", server)
        assert "8 pictures were read" in dvc("repro", "index")
        assert "didn't change" in dvc("repro", "index")
        held["a.tar"] = alike(100)["set/0.tar"]
        assert "8 pictures were read" in dvc("repro", "index")


def test_data_that_cannot_be_listed_are_not_taken_for_none(monkeypatch):
    def gone(url: str):
        raise SourceError(f"{url} cannot be listed, tried 5 times")

    settings = check(yaml.safe_load((ROOT / "params.yaml").read_text()), "")
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"images": "s3://gone/set"})})
    monkeypatch.setattr(far, "listing", gone)
    with pytest.raises(SourceError, match="s3://gone/set cannot be listed"):
        recorded.take("index", settings)


def test_a_change_while_index_runs_is_seen(wire, server, tmp_path):
    put(server, tars(tmp_path / "set"), "edited")
    settings = check(yaml.safe_load((ROOT / "params.yaml").read_text()), "")
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"images": "s3://edited/set"})})
    before = recorded.take("index", settings)
    assert recorded.differences(before, recorded.take("index", settings)) == []
    recorded.settle(before)
    write_tar(tmp_path / "more/set/1.tar", {"x.png": picture(500, 70, 60)})
    put(server, tmp_path / "more/set", "edited")
    assert recorded.differences(before, recorded.take("index", settings)) == [
        "s3://edited/set: 1 changed (s3://edited/set/1.tar)"
    ]
