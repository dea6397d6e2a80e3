"""The page of all keys is what the schema, params.yaml and dvc.yaml say."""

import json

import pytest

from pipeline import keys, params
from tests.project import ROOT


def test_the_page_is_that_of_the_schema():
    text = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    assert text == f"{keys.page(keys.rows())}\n", "make it anew: python -m pipeline keys > docs/keys.md"


def test_every_key_is_there_and_says_what_stages_read_it():
    rows = keys.rows()
    sections = params.Params.model_fields
    assert list(rows) == [
        f"{section}.{key}" for section in sections for key in sections[section].annotation.model_fields
    ]
    assert rows["train.learning_rate"]["a change re-runs"] == "train"
    assert rows["diffusion.prediction"]["a change re-runs"] == "convert, train, merge, sample"
    assert rows["train.previews"]["a change re-runs"] == "cache_text, train"
    assert rows["index.workers"]["a change re-runs"] == ""
    assert not [key for key, row in rows.items() if not row["what it is"]]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model.config", "tiny, sdxl-base"),
        ("train.ema", "true, false"),
        ("train.steps", "whole number above 0, up to 99,999,999, null"),
        ("train.snr_gamma", "number above 0, up to 1,000,000, null"),
        ("train.weights_dtype", "float32, float16, bfloat16"),
        ("cache_latents.background", "list of 3: whole number 0 or more, up to 255"),
        ("sample.saved_steps", "all, list: whole number above 0, up to 99,999,999"),
        ("train.groups", "list: {pattern, learning_rate, freeze}"),
    ],
)
def test_a_kind_in_words(key, kind):
    assert keys.rows()[key]["may be"] == kind


def test_some_keys_alone(capsys):
    with pytest.raises(SystemExit) as ended:
        keys.main(["merge", "train.seed", "--json"])
    assert not ended.value.code
    assert list(json.loads(capsys.readouterr().out)) == ["train.seed", "merge.weights", "merge.dtype"]
    with pytest.raises(SystemExit) as ended:
        keys.main(["train.rate"])
    assert "train.rate: no such key or section" in str(ended.value.code)
