"""What `index` and `python -m pipeline data` say of sets that are not used as their user means it."""

import json
from pathlib import Path

import pytest

from pipeline import params
from pipeline.data import __main__ as command
from pipeline.data import memo
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sets import SetsError
from pipeline.data.sets_file import find
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from pipeline.data.views import sizes_of
from pipeline.doctor.finding import BAD, Finding
from pipeline.stage import explained
from stages import index as stage
from tests.data.data_sets import picture, rows, write_folder
from tests.project import ROOT

P = [picture(number, 64, 64) for number in range(12)]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(memo, "_SETTLED_NS", 0)


def run(data: Path, out: Path, enlargement: float | None = None, **how) -> Summary:
    source = open_source(str(data))
    sets, _ = find(str(data), source)
    others = sizes_of(sets, 32, True)
    return index(source, out, buckets(64, 32), 16, enlargement, 10**6, 1.0, 1, sets=sets, others=others, **how)


SMALL = {"fox/0.png": P[0], **{f"owl/{n}.png": P[n] for n in range(1, 12)}}


@pytest.mark.parametrize(
    "files", [{"sets.yaml": "sets: [{folder: fox}, {folder: owl}]"}, {}], ids=["sets.yaml", "kohya"]
)
def test_a_try_leaves_out_sets_of_which_it_takes_no_picture(tmp_path, files):
    small = SMALL if files else {f"2_{path}": data for path, data in SMALL.items()}
    data = write_folder(tmp_path / "data", small | files)
    said = str(run(data, tmp_path / "out", max_samples=2))
    fox = "fox" if files else "2_fox"
    assert (
        f"set {fox}: 0 pictures, 0 samples an epoch; left out: of the pictures that index.max_samples takes none"
        in said
    )
    assert said.count("left out") == 1 and {row["set"] for row in rows(tmp_path / "out/samples.parquet")} == {1}
    write_folder(data, {"empty/note.md": "", "sets.yaml": "sets: [{folder: ., name: all}, {folder: empty}]"})
    with pytest.raises(SetsError, match="the set 'empty' has no pictures"):
        run(data, tmp_path / "out", max_samples=2)


def test_the_command_counts_as_index_does(tmp_path, capsys):
    """Samples, pictures in no set, captions by set, and masks that cannot be used."""
    toml = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'fox'\nnum_repeats = 10\nclass_tokens = 'sks fox'\n"
    files = {f"fox/{n}.png": P[n] for n in range(3)} | {f"rest/{n}.png": P[n] for n in range(3, 8)}
    files |= {"fox/0.mask.png": b"broken", "fox/1.mask.png": picture(30, 64, 32), "fox/2.mask.png": picture(31)}
    data = write_folder(tmp_path / "data", files | {"dataset.toml": toml})
    found = command.examine(str(data), params.load(ROOT / "params.yaml"), 64)
    assert (found["pictures"], found["captioned"]) == (3, 3)
    assert found["sets"] == [{"name": "fox", "pictures": 3, "samples": 30}]
    assert (found["decoded"], found["used"], found["rejected"]) == (3, 1, {"mask not read": 2})
    assert found["left_alone"] == {"picture, in no set": 5}
    summary = run(data, tmp_path / "out")
    assert (summary.used, summary.captions, summary.reasons) == (1, 1, {"mask not read": 2})
    with pytest.raises(SystemExit, match="^0$"):
        command.main([str(data)])
    assert "set fox: 3 pictures, 30 samples an epoch" in capsys.readouterr().out


def test_the_command_holds_pictures_against_the_resolution_of_their_set(tmp_path):
    files = {"a/0.png": P[0], "b/1.png": P[1], "sets.yaml": "sets: [{folder: a, resolution: 128}, {folder: b}]"}
    found = command.examine(str(write_folder(tmp_path / "data", files)), params.load(ROOT / "params.yaml"), 64)
    assert found["rejected"] == {"too small": 1} and sum(found["buckets"].values()) == 1


def notes(data: Path) -> list[str]:
    return find(str(data), open_source(str(data)))[1]


def test_kohyas_folders_that_do_not_count_are_named(tmp_path):
    data = write_folder(tmp_path / "N", {"img/10_fox/0.png": P[0], "reg/1_fox/1.png": P[1]})
    (said,) = notes(data)
    assert (
        "img/10_fox, reg/1_fox do not count" in said and f"give {data}/img or {data}/reg, or write a sets.yaml" in said
    )
    (said,) = notes(data / "img/10_fox")
    assert f"give the folder that it is in ({data}/img)" in said
    assert "repeats are those of the folders' names" in notes(data / "img")[0]
    assert notes(write_folder(tmp_path / "plain", {"a/b/0.png": P[0]})) == []


def test_captions_that_a_set_does_not_take_are_named(tmp_path):
    files = {"fox/0.png": P[0], "fox/0.txt": "a fox", "fox/1.png": P[1], "fox/1.txt": "x", "fox/1.caption": "another"}
    toml = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'fox'\n"
    data = write_folder(tmp_path / "data", files | {"dataset.toml": toml})
    wanted = "set fox: 1 of its pictures have captions in .txt files alone, and it takes those in .caption files (caption_ext"
    assert wanted in str(run(data, tmp_path / "out"))
    assert wanted in " ".join(command.examine(str(data), params.load(ROOT / "params.yaml"), 0)["notes"])
    (data / "dataset.toml").unlink()
    write_folder(data, {"sets.yaml": "sets: [{folder: fox, chances: {caption: 1}}, {folder: ., name: all}]"})
    said = str(run(data, tmp_path / "out"))
    assert wanted.partition(" (")[0] in said and "(its chances)" in said and said.count("alone, and it takes") == 1


def test_names_cannot_speak_to_the_terminal(tmp_path, capsys, monkeypatch):
    """Escape codes, a bell and a line break in names of files and of a set."""
    bad = "\x1b[31m\a\nindex: all is well"
    files = {f"a/{bad}.png": P[0], f"a/{bad}.txt": f"fox{bad}", "b/0.png": P[1], f"b/{bad}.md": ""}
    sets = {"sets": [{"folder": "a", "name": f"set {bad}"}]}
    data = write_folder(tmp_path / "data", files | {"sets.yaml": json.dumps(sets)})
    settings = params.load(ROOT / "params.yaml")
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"images": str(data)})})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(params, "load", lambda: settings)
    (tmp_path / "outs").mkdir()
    stage.main(settings)
    for given in ([str(data)], ["show", str(data)]):
        with pytest.raises(SystemExit):
            command.main(given)
    said = (
        "".join(capsys.readouterr())
        + explained(SetsError(f"{bad.splitlines()[0]} is none"))
        + str(Finding("data", BAD, bad))
    )
    assert said.count("\\x1b[31m\\x07\\x0aindex") >= 5 and "\x1b[31m" not in said and "\nindex: all is well" not in said


def test_a_weight_of_one_set_alone_is_named(tmp_path):
    data = write_folder(tmp_path / "data", SMALL)
    for other, said in (("", ["set fox is the only one with a weight"]), (", weight: 1", [])):
        write_folder(data, {"sets.yaml": f"sets: [{{folder: fox, weight: 3}}, {{folder: owl{other}}}]"})
        assert [note[:37] for note in notes(data)] == said


def test_further_resolutions_are_told(tmp_path):
    """Of 64 pixels, so that 128 would enlarge them twice; and one of 96."""
    files = {"0.png": P[0], "1.png": picture(1, 96, 96), "sets.yaml": "sets: [{folder: ., resolution: [64, 96, 128]}]"}
    said = str(run(write_folder(tmp_path / "data", files), tmp_path / "out", 1.2)).splitlines()
    assert "index:   bucket 64×64: 2" in said and "index:   further bucket 96×96: 1" in said
    assert (
        "index:   resolution 128 is not used: no picture is large enough (index.min_side, index.max_enlargement)"
        in said
    )
    assert sum("is not used" in line for line in said) == 1
    (latents,) = [line for line in said if "latents of" in line]
    assert latents.startswith("index: 3 latents of 2 pictures")
    encoded = sum(len(row["views"]) // 3 for row in rows(tmp_path / "out/images.parquet"))
    assert encoded == 3


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"sets.yml": ""}, "sets.yml is not read; did you mean sets.yaml?"),
        ({"Dataset.toml": ""}, "Dataset.toml is not read; did you mean dataset.toml?"),
        ({"metadata.json": "[]"}, "metadata.json is not read; did you mean metadata.jsonl?"),
        (
            {"fox/dataset.toml": ""},
            "fox/dataset.toml: a file of sets counts right in the data set alone; move it there",
        ),
        (
            {"sets.yaml": "sets: [{folder: fox}, {folder: fox, repeats: 2}]"},
            "several sets are named fox: give each a name",
        ),
    ],
)
def test_files_that_are_perhaps_meant_for_sets_are_named(tmp_path, files, said):
    (found,) = notes(write_folder(tmp_path / "data", {"fox/0.png": P[0]} | files))
    assert found.startswith(said)


def test_a_concept_with_a_mistake_in_a_name(tmp_path):
    data = write_folder(tmp_path / "data", {"fox/0.png": P[0], "concepts.json": '[{"path": "fox", "balancin": 2}]'})
    with pytest.raises(SetsError, match=r"balancin is no setting .*; did you mean balancing"):
        notes(data)


def test_one_sample_is_no_samples(tmp_path):
    data = write_folder(tmp_path / "data", {"fox/0.png": P[0], "sets.yaml": "sets: [{folder: fox}]"})
    assert "set fox: 1 picture, 1 sample an epoch" in str(run(data, tmp_path / "out"))
