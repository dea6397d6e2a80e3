"""A UNet behind SDXL's text encoders, for training them with it: what it is conditioned on are token ids."""

import pipeline.device  # noqa: F401  (sets the environment of MindSpore before its import)

import mindspore as ms
from mindspore import nn, ops

from pipeline.models.clip import ClipG, ClipL
from pipeline.models.unet import UNet

# How the encoders' parameters begin; the UNet's begin otherwise.
_BEGINS = {"clip_l": "transformer.", "clip_g": "model."}


def part_of(parameter: str) -> str:
    """The component that a parameter of WithText is of: unet, clip_l or clip_g."""
    return next((part for part, begin in _BEGINS.items() if parameter.startswith(begin)), "unet")


class WithText(nn.Cell):
    def __init__(self, unet: UNet, clip_l: ClipL, clip_g: ClipG):
        super().__init__(auto_prefix=False)
        self.unet, self.clip_l, self.clip_g = unet, clip_l, clip_g

    def construct(self, x, timesteps, ids, numbers):
        """As the UNet's, but for ids (b, 2, chunks, 77) int32 of CLIP-L and of bigG, or -1 for a text that is left out,
        in the place of the context, and numbers (b, 6 * 256) of sizes and crops in that of the vector."""
        b, _, chunks, tokens = ids.shape
        kept = (ids[:, 0, 0, :1] >= 0).astype(ms.float32)
        # all chunks at once: an NPU's graph in which weights are used twice has a copy of each
        context, pooled = self.text(ops.maximum(ids, 0).swapaxes(1, 2).reshape(b * chunks, 2, tokens))
        if chunks > 1:
            # tokens.join_chunks: the first chunk's begin, each chunk's 75 tokens, the last one's end
            hidden = context.reshape(b, chunks, tokens, -1)
            begin, middle, end = ms.mint.split(hidden, (1, tokens - 2, 1), 2)
            middle = middle.reshape(b, chunks * (tokens - 2), -1)
            context = ops.concat((begin[:, 0], middle, end[:, -1]), 1)
            pooled = pooled.reshape(b, chunks, -1)[:, 0]
        context = context * kept.expand_dims(1)
        return self.unet(x, timesteps, context, ops.concat((pooled * kept, numbers), 1))

    def text(self, ids):
        """ids (b, 2, 77) -> hidden states (b, 77, width of both), pooled (b, projection_dim), in float32"""
        hidden_l = self.clip_l(ids[:, 0])
        hidden_g, pooled = self.clip_g(ids[:, 1])
        hidden = ops.concat((hidden_l.astype(ms.float32), hidden_g.astype(ms.float32)), 2)
        return hidden, pooled.astype(ms.float32)
