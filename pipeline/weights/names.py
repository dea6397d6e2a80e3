"""Parameter names: Stability's single-file layout <-> MindSpore, by three rules and no table.

1. Norm layers: `.weight` <-> `.gamma`, `.bias` <-> `.beta`.
2. Embedding tables: `.weight` <-> `.embedding_table`.
3. All other names are the same on both sides; no tensor is reshaped or transposed.

The two functions are inverse to each other. Each raises ValueError for a name that can only be the other side's, so a
name is never mapped twice and no two names fall together."""

import re

# In the order of the layout.
PREFIX = {
    "unet": "model.diffusion_model.",
    "clip_l": "conditioner.embedders.0.",
    "clip_g": "conditioner.embedders.1.",
    "vae": "first_stage_model.",
}

# GroupNorms of the UNet's residual blocks and of its output stand in nn.Sequential and have numbers for names.
_NORM = re.compile(
    r"(?:^|\.)(?:norm|norm[123]|norm_out|layer_norm[12]|final_layer_norm|ln_[12]|ln_final|in_layers\.0|out_layers\.0)$"
    r"|^model\.diffusion_model\.out\.0$"
)
_NORM_LEAF = {"weight": "gamma", "bias": "beta"}
_WITHOUT_TEXT_MODEL = re.compile(
    r"^(conditioner\.embedders\.0\.transformer\.)((?:embeddings|encoder|final_layer_norm)\.)"
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:token_embedding|position_embedding)$")


def part_of(name: str) -> str | None:
    """The component (a key of PREFIX) that a full name of either side belongs to, or None."""
    return next((part for part, prefix in PREFIX.items() if name.startswith(prefix)), None)


def canonical(name: str) -> str:
    """Stability's name of a tensor, whichever of these wrote it; any other name as it is.

    - MindSpore's names, also with the `._backbone` that its mixed precision leaves in the names of norms;
    - transformers from 5.6 on, whose CLIPTextModel has no `text_model.` in its names."""
    name = re.sub(r"(\._backbone)+(?=\.)", "", name)
    if name.endswith((".gamma", ".beta", ".embedding_table")):
        try:
            name = to_stability(name)
        except ValueError:
            return name  # no name of SDXL's
    return _WITHOUT_TEXT_MODEL.sub(r"\1text_model.\2", name)


def to_mindspore(name: str) -> str:
    """Stability's name -> MindSpore's. Raises ValueError for a name that is MindSpore's already."""
    module, _, leaf = name.rpartition(".")
    if leaf in ("gamma", "beta", "embedding_table"):
        raise ValueError(f"{name} is a MindSpore name already; wanted one of Stability's layout")
    if _NORM.search(module) and leaf in _NORM_LEAF:
        return f"{module}.{_NORM_LEAF[leaf]}"
    if _EMBEDDING.search(module) and leaf == "weight":
        return f"{module}.embedding_table"
    return name


def to_stability(name: str) -> str:
    """MindSpore's name -> Stability's. Raises ValueError for a name that no Stability name leads to."""
    module, _, leaf = name.rpartition(".")
    original = {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}.get(leaf, leaf)
    stability = f"{module}.{original}" if module else original
    if to_mindspore(stability) != name:
        raise ValueError(f"{name} is not a MindSpore name of SDXL: no name of Stability's layout leads to it")
    return stability
