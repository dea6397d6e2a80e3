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
        kept = (ids[:, 0, 0, :1] >= 0).astype(ms.float32)
        ids = ops.maximum(ids, 0)
        hidden, pooled = self.text(ids[:, :, 0])
        context = hidden[:, :1]
        for number in range(ids.shape[2]):
            if number > 0:
                hidden, _ = self.text(ids[:, :, number])
            # tokens.join_chunks: the first chunk's begin, each chunk's 75 tokens, the last one's end
            context = ops.concat((context, hidden[:, 1:-1]), 1)
        context = ops.concat((context, hidden[:, -1:]), 1) * kept.expand_dims(1)
        return self.unet(x, timesteps, context, ops.concat((pooled * kept, numbers), 1))

    def text(self, ids):
        """ids (b, 2, 77) -> hidden states (b, 77, width of both), pooled (b, projection_dim), in float32"""
        hidden_l = self.clip_l(ids[:, 0])
        hidden_g, pooled = self.clip_g(ids[:, 1])
        hidden = ops.concat((hidden_l.astype(ms.float32), hidden_g.astype(ms.float32)), 2)
        return hidden, pooled.astype(ms.float32)
