"""Names against the reference list of sd_xl_base_1.0.safetensors."""

import pytest

from pipeline.models.config import TINY
from pipeline.weights import layout
from pipeline.weights.names import PREFIX, canonical, to_mindspore, to_stability
from tests.reference import sdxl_base_tensors


def test_every_name_of_the_reference_list_maps_both_ways():
    for stability, mindspore, _ in sdxl_base_tensors():
        assert to_mindspore(stability) == mindspore
        assert to_stability(mindspore) == stability


def test_799_names_change_and_none_fall_together():
    rows = sdxl_base_tensors()
    assert sum(to_mindspore(name) != name for name, _, _ in rows) == 799
    assert len({to_mindspore(name) for name, _, _ in rows}) == 2514


def test_tiny_names_map_both_ways():
    names = list(layout.shapes(TINY))
    assert [to_stability(to_mindspore(name)) for name in names] == names


@pytest.mark.parametrize(
    "name", ["a.norm1.gamma", "model.diffusion_model.out.0.beta", "token_embedding.embedding_table"]
)
def test_a_mindspore_name_is_not_mapped_again(name):
    with pytest.raises(ValueError, match="MindSpore name already"):
        to_mindspore(name)


@pytest.mark.parametrize(
    "name", ["a.norm1.weight", "model.diffusion_model.out.0.bias", "token_embedding.weight", "a.conv.gamma"]
)
def test_a_name_that_is_not_mindspores_has_no_reverse(name):
    with pytest.raises(ValueError, match="not a MindSpore name"):
        to_stability(name)


def test_every_writers_name_becomes_stabilitys():
    for stability, mindspore, _ in sdxl_base_tensors():
        assert canonical(stability) == canonical(mindspore) == stability
        if mindspore != stability:
            module, _, leaf = mindspore.rpartition(".")
            assert canonical(f"{module}._backbone._backbone.{leaf}") == stability
    flat = "conditioner.embedders.0.transformer.{}encoder.layers.0.mlp.fc1.weight"
    assert canonical(flat.format("")) == canonical(flat.format("text_model.")) == flat.format("text_model.")


@pytest.mark.parametrize("name", ["gamma", "x.gamma", "ema._backbone", "encoder.layers.0.mlp.fc1.weight", "", "a.beta"])
def test_other_names_stay(name):
    assert canonical(name) == name


def test_a_numbered_norm_counts_only_at_its_own_place():
    assert to_mindspore("model.diffusion_model.out.2.weight") == "model.diffusion_model.out.2.weight"
    assert to_mindspore("x.attn1.to_out.0.weight") == "x.attn1.to_out.0.weight"
    assert to_mindspore("x.in_layers.2.weight") == "x.in_layers.2.weight"
    assert to_mindspore("x.group_norm.weight") == "x.group_norm.weight"


def test_prefixes_split_the_reference_list_without_rest():
    counts = {
        part: sum(name.startswith(prefix) for name, _, _ in sdxl_base_tensors()) for part, prefix in PREFIX.items()
    }
    assert counts == {"unet": 1680, "clip_l": 196, "clip_g": 390, "vae": 248}
