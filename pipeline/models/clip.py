"""SDXL's two text encoders, under the module names of Stability's file: CLIP ViT-L/14 (arXiv 2103.00020) in
transformers' layout and OpenCLIP ViT-bigG/14 in OpenCLIP's. Both give the hidden states of the last layer but one,
without the final norm (SDXL, arXiv 2307.01952, section 2.1). `layers` is the module whose layers a cell is made of:
models/layers.py or models/cpu/layers.py."""

from types import ModuleType

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import initializer

from pipeline.models import forms
from pipeline.models.attention import attend
from pipeline.models.config import CLIPConfig


def _causal(tokens: int) -> ms.Tensor:
    """(tokens, tokens) float32, added to the scores: a token sees itself and those before it."""
    return ms.Tensor(np.triu(np.full((tokens, tokens), np.finfo(np.float32).min, np.float32), k=1))


def _heads(x, heads: int):
    """(b, tokens, width) -> (b, heads, tokens, width / heads)"""
    b, tokens, width = x.shape
    return x.reshape(b, tokens, heads, width // heads).swapaxes(1, 2)


def _join(x):
    """(b, heads, tokens, head_dim) -> (b, tokens, heads * head_dim)"""
    b, heads, tokens, head_dim = x.shape
    return x.swapaxes(1, 2).reshape(b, tokens, heads * head_dim)


class SelfAttention(nn.Cell):
    """transformers' form: query, key and value projections apart."""

    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.heads = config.heads
        self.scale = (config.width // config.heads) ** -0.5
        self.k_proj = layers.Linear(config.width, config.width)
        self.v_proj = layers.Linear(config.width, config.width)
        self.q_proj = layers.Linear(config.width, config.width)
        self.out_proj = layers.Linear(config.width, config.width)
        self.mask = _causal(config.context_length)
        self.fork = layers.Fork()

    def construct(self, x):
        for_q, x = self.fork(x)
        for_k, for_v = self.fork(x)
        q, k, v = self.q_proj(for_q), self.k_proj(for_k), self.v_proj(for_v)
        q, k, v = (_heads(part, self.heads) for part in (q, k, v))
        return self.out_proj(_join(attend(q, k, v, self.scale, self.mask)))


class QuickGeluMLP(nn.Cell):
    """CLIP-L's feed-forward layer; x * sigmoid(1.702 x) is OpenAI's GELU."""

    def __init__(self, layers: ModuleType, width: int):
        super().__init__()
        self.fc1 = layers.Linear(width, 4 * width)
        self.fc2 = layers.Linear(4 * width, width)
        self.fork = layers.Fork()

    def construct(self, x):
        h, gate = self.fork(self.fc1(x))
        return self.fc2(h * ops.sigmoid(1.702 * gate))


class EncoderLayer(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.self_attn = SelfAttention(layers, config)
        self.layer_norm1 = layers.LayerNorm(config.width)
        self.mlp = QuickGeluMLP(layers, config.width)
        self.layer_norm2 = layers.LayerNorm(config.width)
        self.fork = layers.Fork()

    def construct(self, x):
        x, skipped = self.fork(x)
        x, skipped = self.fork(skipped + self.self_attn(self.layer_norm1(x)))
        return skipped + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.token_embedding = layers.Embedding(config.vocab_size, config.width)
        self.position_embedding = layers.Embedding(config.context_length, config.width)

    def construct(self, ids):
        return self.token_embedding(ids) + self.position_embedding.embedding_table


class Encoder(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.layers = nn.CellList([EncoderLayer(layers, config) for _ in range(config.layers)])

    def construct(self, x):
        for layer in self.layers[:-1]:  # SDXL never uses the last layer; it is there for the checkpoint's sake
            x = layer(x)
        return x


class TextModel(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.embeddings = Embeddings(layers, config)
        self.encoder = Encoder(layers, config)
        self.final_layer_norm = layers.LayerNorm(config.width)  # in the checkpoint, not in SDXL's use of it

    def construct(self, ids):
        return self.encoder(self.embeddings(ids))


class Transformers(nn.Cell):
    """The level of names that transformers' CLIPTextModel adds."""

    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.text_model = TextModel(layers, config)

    def construct(self, ids):
        return self.text_model(ids)


class ClipL(nn.Cell):
    def __init__(self, config: CLIPConfig, layers: ModuleType | None = None):
        super().__init__()
        layers = layers or forms.chosen()
        self.transformer = Transformers(layers, config)

    def construct(self, ids):
        """ids (b, 77) int32, padded with the end-of-text token -> hidden states (b, 77, width)"""
        return self.transformer(ids)


class FusedAttention(nn.Cell):
    """OpenCLIP's form: query, key and value projections are one matrix, in that order."""

    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.scale = (width // config.heads) ** -0.5
        self.in_proj_weight = ms.Parameter(initializer("xavier_uniform", (3 * width, width)), "in_proj_weight")
        self.linear = layers.linear
        self.in_proj_bias = ms.Parameter(initializer("zeros", (3 * width,)), "in_proj_bias")
        self.out_proj = layers.Linear(width, width)
        self.mask = _causal(config.context_length)
        self.adapted = nn.Identity()  # in whose place models/adapters.py puts what changes the weight

    def construct(self, x):
        qkv = self.linear(x, self.adapted(self.in_proj_weight), self.in_proj_bias)
        q, k, v = (_heads(part, self.heads) for part in ms.mint.chunk(qkv, 3, -1))
        return self.out_proj(_join(attend(q, k, v, self.scale, self.mask)))


class GeluMLP(nn.Cell):
    def __init__(self, layers: ModuleType, width: int):
        super().__init__()
        self.c_fc = layers.Linear(width, 4 * width)
        self.gelu = layers.GELU()
        self.c_proj = layers.Linear(4 * width, width)

    def construct(self, x):
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.ln_1 = layers.LayerNorm(config.width)
        self.attn = FusedAttention(layers, config)
        self.ln_2 = layers.LayerNorm(config.width)
        self.mlp = GeluMLP(layers, config.width)
        self.fork = layers.Fork()

    def construct(self, x):
        x, skipped = self.fork(x)
        x, skipped = self.fork(skipped + self.attn(self.ln_1(x)))
        return skipped + self.mlp(self.ln_2(x))


class OpenTransformer(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        self.resblocks = nn.CellList([ResidualAttentionBlock(layers, config) for _ in range(config.layers)])
        self.fork = layers.Fork()

    def construct(self, x):
        """-> (hidden states after the last block but one, hidden states after the last block)"""
        for block in self.resblocks[:-1]:
            x = block(x)
        x, hidden = self.fork(x)
        return hidden, self.resblocks[-1](x)


class OpenCLIP(nn.Cell):
    def __init__(self, layers: ModuleType, config: CLIPConfig):
        super().__init__()
        width = config.width
        self.positional_embedding = ms.Parameter(
            initializer("normal", (config.context_length, width)), "positional_embedding"
        )
        self.text_projection = ms.Parameter(initializer("normal", (width, config.projection_dim)), "text_projection")
        self.logit_scale = ms.Parameter(initializer("zeros", ()), "logit_scale")  # in the checkpoint; not used here
        self.transformer = OpenTransformer(layers, config)
        self.token_embedding = layers.Embedding(config.vocab_size, width)
        self.ln_final = layers.LayerNorm(width)
        self.at_largest = layers.AtLargest()

    def construct(self, ids):
        hidden, last = self.transformer(self.token_embedding(ids) + self.positional_embedding)
        # the end-of-text token has the largest id of the vocabulary
        last = self.at_largest(last, ids)
        return hidden, ops.matmul(self.ln_final(last), self.text_projection.astype(last.dtype))


class ClipG(nn.Cell):
    def __init__(self, config: CLIPConfig, layers: ModuleType | None = None):
        super().__init__()
        layers = layers or forms.chosen()
        self.model = OpenCLIP(layers, config)

    def construct(self, ids):
        """ids (b, 77) int32, padded with 0 -> (hidden states (b, 77, width), pooled (b, projection_dim)); pooled is the
        last layer's final norm at the first end-of-text token, projected."""
        return self.model(ids)
