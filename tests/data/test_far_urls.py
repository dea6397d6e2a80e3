"""Which URLs are taken and what is said of others; no way from far data to a file of this computer, and no key into what
is written."""

import io

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.data import far
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from pipeline.params import check
from tests.data import far_servers
from tests.data.data_sets import picture
from tests.data.far_samples import KEY, PICTURES, SECRET, forget, put, run, tars
from tests.project import ROOT


def test_params_take_a_url():
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for url in ("s3://bucket/set", "https://host/{00000..00099}.tar", "hf://datasets/owner/name"):
        tree["data"]["images"] = url
        assert check(tree, "params.yaml").data.images == url


def test_patterns():
    assert far.urls("https://h/{08..11}.tar") == [f"https://h/{n}.tar" for n in ("08", "09", "10", "11")]
    assert far.urls("s3://b/{x,y}/{0..1}.tar") == [f"s3://b/{a}/{n}.tar" for a in "xy" for n in "01"]
    assert far.urls("hf://datasets/o/n@main/a.parquet") == ["hf://datasets/o/n@main/a.parquet"]
    assert len(far.urls("https://h/{00000..00099}.tar")) == 100


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


def test_a_file_of_urls_that_is_none(tmp_path):
    for text, message in (("", "wanted a URL"), ("/etc/passwd\n", "wanted a URL"), ("file:///etc/a.tar", "not read")):
        (tmp_path / "a.urls").write_text(text)
        with pytest.raises(SourceError, match=message):
            open_source(str(tmp_path / "a.urls"))


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


def test_a_server_that_answers_with_the_whole_file_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(far, "WAITS", 60)  # a second attempt would take a minute
    data = (tars(tmp_path / "set", 1) / "0.tar").read_bytes()
    asked = []
    with far_servers.web({"0.tar": data, "sets.yaml": b"sets: [{folder: .}]"}, asked, ranges=False) as address:
        with pytest.raises(
            SourceError, match=r"0.tar cannot be read .*gives no parts of a file.* with 200.*not with 206"
        ):
            run(f"{address}/0.tar", tmp_path / "out")
        assert len(asked) < 5
        assert far.whole(f"{address}/sets.yaml", 1000) == b"sets: [{folder: .}]"  # of which all is wanted


def test_an_absent_package_is_named(monkeypatch):
    far._filesystem.cache_clear()
    monkeypatch.setitem(far.SCHEMES, "s3", "no_such_package")
    with pytest.raises(SourceError, match="s3:// needs the package no_such_package"):
        open_source("s3://bucket/a.tar")
    monkeypatch.setitem(far.SCHEMES, "s3", "s3fs")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(SourceError, match="make repro S3=1"):
        open_source("s3://bucket/a.tar")


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
    forget()
    wire.breaks("closed")
    monkeypatch.setattr(far, "ATTEMPTS", 2)
    with pytest.raises(SourceError) as error:
        open_source("s3://keys/set")
    said = "".join(capfd.readouterr()) + str(summary) + str(error.value)
    files = [path.read_bytes() for top in ("out", "store") for path in (tmp_path / top).rglob("*") if path.is_file()]
    for word in (KEY, SECRET):
        assert word not in said and not [data for data in files if word.encode() in data]
