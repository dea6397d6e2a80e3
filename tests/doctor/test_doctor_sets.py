"""What the doctor says of a data set with sets: it cannot start where `index` stops, and can where that goes on."""

import pytest

from pipeline.doctor import inputs
from pipeline.doctor.finding import BAD, DOUBTFUL, GOOD, look
from stages import index
from tests.data import data_sets
from tests.training.training_samples import params

TOML = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"


def folder(root, files: dict, side: int = 64):
    pictures = {f"a/{n}.png": data_sets.picture(n, side, side) for n in range(4)}
    return data_sets.write_folder(root / "data", pictures | files)


def look_at(path, **changes):
    return look("data", inputs.data, params(**{"data.images": str(path)} | changes))


FAULTS = {
    "a key of another spelling": ({"sets.yaml": "sets:\n  - {folder: a, repeets: 3}\n"}, "repeets"),
    "a folder that is not there": ({"sets.yaml": "sets:\n  - {folder: b}\n"}, "there is no 'b'"),
    "a set without pictures": ({"sets.yaml": "sets:\n  - {folder: b}\n", "b/x.txt": "x"}, "no pictures that are in a set"),
    "one of two sets without pictures": (
        {"sets.yaml": "sets:\n  - {folder: a}\n  - {folder: b}\n", "b/x.txt": "x"}, "the set 'b' has no pictures",
    ),
    "no samples": ({"sets.yaml": "sets:\n  - {folder: a, repeats: 0}\n"}, "an epoch has 0 samples"),
    "class pictures alone": ({"sets.yaml": "sets:\n  - {folder: a, class_images: true}\n"}, "or another set"),
    "a resolution between the steps": ({"sets.yaml": "sets:\n  - {folder: a, resolution: 72}\n"}, "a resolution of 72"),
    "what kohya does to colours": ({"dataset.toml": f"{TOML}color_aug = true\n"}, "color_aug"),
    "two files of sets": ({"dataset.toml": TOML, "sets.yaml": "sets:\n  - {folder: a}\n"}, "keep one of them"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_where_index_stops_the_doctor_says_so(tmp_path, monkeypatch, name):
    files, said = FAULTS[name]
    path = folder(tmp_path, files)
    (found,) = look_at(path)
    assert (found.name, found.state) == ("data", BAD) and said in found.found
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIPELINE_STORE", str(tmp_path / "store"))
    with pytest.raises(inputs.StageError):
        index.main(params(**{"data.images": str(path)}))


def test_captions_are_those_of_the_sets(tmp_path):
    """kohya's 10_name has a caption for pictures that have none."""
    files = {f"10_fox/{n}.png": data_sets.picture(n, 64, 64) for n in range(4)}
    pictures, captions = look_at(data_sets.write_folder(tmp_path / "data", files))
    assert (pictures.state, captions.state) == (GOOD, GOOD) and "4 of these 4" in captions.found
    assert "such as 'fox'" in captions.found


def test_pictures_are_held_against_the_resolution_of_their_set(tmp_path):
    """At 128 pixels they would be enlarged twice."""
    path, enlarged = folder(tmp_path, {f"a/{n}.txt": "x" for n in range(4)}), {"index.resolution": 128}
    assert [one.state for one in look_at(path, **enlarged)] == [BAD, GOOD]
    (path / "sets.yaml").write_text("sets:\n  - {folder: a, resolution: 64}\n")
    assert [one.state for one in look_at(path, **enlarged)] == [GOOD, GOOD]
    data_sets.write_folder(path, {"b/0.png": data_sets.picture(9, 40, 40), "b/0.txt": "x"})
    (path / "sets.yaml").write_text("sets:\n  - {folder: a, resolution: 64}\n  - {folder: b}\n")
    assert [one.state for one in look_at(path, **enlarged)] == [DOUBTFUL, GOOD]


def test_what_is_in_no_set_is_not_looked_at(tmp_path):
    path = folder(tmp_path, {"b/bad.png": b"no picture", "sets.yaml": "sets:\n  - {folder: a, caption: a fox}\n"})
    assert [one.state for one in look_at(path)] == [GOOD, GOOD]


def test_pictures_whose_masks_cannot_be_used(tmp_path):
    path = folder(tmp_path, {f"a/{n}.txt": "x" for n in range(4)} | {"a/1.mask.png": b"no picture"})
    found, _ = look_at(path)
    assert found.state in (BAD, DOUBTFUL) and "1 mask not read" in found.found


def test_captions_that_are_there_and_not_taken(tmp_path):
    path = folder(tmp_path, {f"a/{n}.txt": "x" for n in range(4)} | {"dataset.toml": TOML})
    _, captions = look_at(path)
    assert captions.state == BAD and "4 of its pictures have captions in .txt files alone" in captions.do
