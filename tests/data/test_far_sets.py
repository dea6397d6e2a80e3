"""Files of sets that lie far away beside the tars that they name."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from pipeline.stage import StageError
from tests.data import far_servers
from tests.data.data_sets import contents
from tests.data.far_samples import put, tars

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
    # kohya's and OneTrainer's sets take captions of files, which a tar's members are not: that is said in a line more
    assert near.sets == away.sets and len(near.sets) == {"sets.yaml": 3, "dataset.toml": 2, "concepts.json": 3}[file]
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
