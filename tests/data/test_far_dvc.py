"""DVC and data that lie far away: index runs again when they have changed."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import recorded
from pipeline.data import __main__ as data
from pipeline.data import far, urls
from pipeline.data.part import SourceError
from pipeline.params import Params, check
from tests.data import far_servers
from tests.data.data_sets import picture, write_tar
from tests.data.far_samples import KEY, SECRET, alike, put, run, tars
from tests.project import ROOT, copy_project


def watched(root: Path, url: str, server: str) -> Callable[..., str]:
    """A project with data.images far away; -> a function that runs a module of Python there and gives what it says."""
    copy_project(root)
    shutil.rmtree(root / ".dvc", ignore_errors=True)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("images: data/images", f"images: {url}"))
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "PIPELINE_STORE")} | {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": server,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip

    def python(*words: str, code: int = 0) -> str:
        done = subprocess.run([sys.executable, "-m", *words], cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    python("dvc", "init", "--no-scm", "--quiet")
    return python


def test_dvc_runs_index_again_when_the_data_far_away_change(server, tmp_path):
    """dvc.yaml's own dependency on data.images, by the ETags of the listing; what is edited while index runs is seen too."""
    put(server, tars(tmp_path / "set"), "watched")
    python = watched(tmp_path / "project", "s3://watched/set", server)
    assert "16 of 16 pictures are used" in python("dvc", "repro", "index")
    assert "didn't change" in python("dvc", "repro", "index")
    write_tar(tmp_path / "more/set/1.tar", {"x.png": picture(500, 70, 60)})
    put(server, tmp_path / "more/set", "watched")
    said = python("dvc", "repro", "index")
    assert "9 of 9 pictures are used" in said and "1 picture was read" in said
    lock = (tmp_path / "project/dvc.lock").read_text()
    assert "s3://watched/set" in lock and KEY not in lock and SECRET not in lock


def test_dvc_runs_index_again_when_a_tar_on_a_web_server_changes(server, tmp_path):
    """By its ETag alone: the new one is as long."""
    held = {"a.tar": alike(0)["set/0.tar"]}
    with far_servers.web(held) as address:
        python = watched(tmp_path / "project", f"{address}/a.tar", server)
        assert "8 pictures were read" in python("dvc", "repro", "index")
        assert "didn't change" in python("dvc", "repro", "index")
        held["a.tar"] = alike(100)["set/0.tar"]
        assert "8 pictures were read" in python("dvc", "repro", "index")


def of(images: str) -> Params:
    settings = check(yaml.safe_load((ROOT / "params.yaml").read_text()), "")
    return settings.model_copy(update={"data": settings.data.model_copy(update={"images": images})})


def test_data_that_cannot_be_listed_are_not_taken_for_none(monkeypatch):
    def gone(url: str):
        raise SourceError(f"{url} cannot be listed, tried 5 times")

    settings = of("s3://gone/set")
    monkeypatch.setattr(far, "listing", gone)
    with pytest.raises(SourceError, match="s3://gone/set cannot be listed"):
        recorded.take("index", settings)


def test_a_change_while_index_runs_is_seen(wire, server, tmp_path):
    put(server, tars(tmp_path / "set"), "edited")
    settings = of("s3://edited/set")
    before = recorded.take("index", settings)
    assert recorded.differences(before, recorded.take("index", settings)) == []
    recorded.settle(before)
    write_tar(tmp_path / "more/set/1.tar", {"x.png": picture(500, 70, 60)})
    put(server, tmp_path / "more/set", "edited")
    assert recorded.differences(before, recorded.take("index", settings)) == [
        "s3://edited/set: 1 changed (s3://edited/set/1.tar)"
    ]


# --- lists of URLs


REFRESH = "pipeline", "data", "refresh"


def test_the_state_of_what_is_listed_changes_with_it_and_with_nothing_else(wire, server, tmp_path):
    """Patterns of a web server, and a folder of S3; only lines of what has changed are written anew."""
    put(server, tars(tmp_path / "set"), "listed")
    held, file = alike(0), tmp_path / "a.urls"
    with far_servers.web(held) as address:
        pattern = f"{address}/set/{{0..1}}.tar"
        file.write_text(f"# mine\n\n  s3://listed/set\n{pattern}\n")
        of_s3, of_web = urls.refresh(str(file))
        assert (of_s3.url, of_s3.old, of_web.url, of_web.old) == ("s3://listed/set", None, pattern, None)
        assert of_web.new.startswith(f"files: 2, bytes: {sum(map(len, held.values())):,}, state: ")
        text, inode = file.read_text(), file.stat().st_ino
        assert text == f"# mine\n\ns3://listed/set # {of_s3.new}\n{pattern} # {of_web.new}\n"
        assert run(str(file), tmp_path / "out").used == 32  # it is read as without the states
        assert urls.refresh(str(file)) == [] and file.stat().st_ino == inode

        held["set/1.tar"] = alike(100)["set/1.tar"]  # as long as it was
        (change,) = urls.refresh(str(file))
        assert change[:2] == of_web[::2] and change.new != of_web.new
        assert file.read_text() == text.replace(of_web.new, change.new)
        held["set/1.tar"] = alike(0)["set/1.tar"]
        urls.refresh(str(file))
        assert file.read_text() == text  # it is a function of the content

        write_tar(tmp_path / "more/set/2.tar", {"x.png": picture(500, 70, 60)})
        put(server, tmp_path / "more/set", "listed")
        (change,) = urls.refresh(str(file))
        assert change.url == "s3://listed/set" and change.new.startswith("files: 3, ")


def test_dvc_runs_index_again_when_what_is_listed_changes(server, tmp_path, monkeypatch):
    """By `data refresh`: tars by a pattern of a web server, and of a branch of the hub."""
    held, of_hub = alike(0), alike(200)
    with far_servers.web(held) as address:
        held |= far_servers.hub("owner/name", "main", of_hub)
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        python = watched(tmp_path / "project", "data/web.urls", server)
        file = tmp_path / "project/data/web.urls"
        file.write_text(f"{address}/set/{{0..1}}.tar\nhf://datasets/owner/name@main/set\n")

        assert "`dvc repro` will run index again" in python(*REFRESH)
        assert "32 pictures were read" in python("dvc", "repro", "index")
        assert "nothing behind it has changed" in python(*REFRESH)
        assert "didn't change" in python("dvc", "repro", "index")
        held["set/1.tar"] = alike(100)["set/1.tar"]
        assert "didn't change" in python("dvc", "repro", "index")  # DVC asks no server
        said = python("stages.index", code=1)
        assert f"{address}/set/{{0..1}}.tar has changed since data/web.urls was refreshed" in said
        assert f"{address}/set/{{0..1}}.tar: files: 2" in python(*REFRESH)
        assert "8 pictures were read" in python("dvc", "repro", "index")
        held |= far_servers.hub("owner/name", "main", of_hub | {"set/0.tar": alike(300)["set/0.tar"]})
        assert "hf://datasets/owner/name@main/set: files: 2" in python(*REFRESH)
        assert "8 pictures were read" in python("dvc", "repro", "index")
        assert "didn't change" in python("dvc", "repro", "index")


def test_a_change_behind_a_list_while_index_runs_is_seen(tmp_path):
    held, file = alike(0), tmp_path / "a.urls"
    with far_servers.web(held) as address:
        file.write_text(f"{address}/set/{{0..1}}.tar\n")
        settings = of(str(file))
        before = recorded.take("index", settings)
        assert recorded.differences(before, recorded.take("index", settings)) == []
        held["set/1.tar"] = alike(100)["set/1.tar"]
        now = recorded.take("index", settings)
        assert recorded.differences(before, now) == [f"{file}: 1 changed ({address}/set/1.tar)"]
        urls.refresh(str(file))
        recorded.take("index", settings)
        held["set/0.tar"] = alike(100)["set/0.tar"]
        with pytest.raises(SourceError, match="has changed since .*a.urls was refreshed .files: 2.* data refresh`"):
            recorded.take("index", settings)


def test_what_is_no_list_is_not_refreshed(tmp_path):
    with pytest.raises(SystemExit) as error:
        data.main(["refresh", "s3://bucket/set"])
    assert "s3://bucket/set is no .urls file; `dvc repro` itself looks" in str(error.value)
    (tmp_path / "a.urls").write_text("/etc/passwd\n")
    with pytest.raises(SourceError, match="wanted a URL"):
        urls.refresh(str(tmp_path / "a.urls"))


@pytest.mark.parametrize(
    ("images", "asks"), [("data/web.urls # mine", True), ('"my sets.URLS"', True), ("data/images # no .urls", False)]
)
def test_make_repro_asks_the_servers_of_a_list(tmp_path, images, asks):
    for file in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy(file, tmp_path)
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub("(images: )data/images.*", rf"\g<1>{images}", text))
    done = subprocess.run(["make", "-n", "repro"], cwd=tmp_path, capture_output=True, text=True)
    assert "dvc repro" in done.stdout, done.stderr
    assert ("python -m pipeline data refresh" in done.stdout) == asks
