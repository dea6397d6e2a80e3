"""In place of the UNet where a test is about the training around it: compiles in a second, and every input matters."""

import pipeline.device  # noqa: F401  (before MindSpore)

import mindspore as ms
from mindspore import nn

from pipeline.models import forms


class StubUNet(nn.Cell):
    made_with: dict = {}

    def __init__(self, config, attention="plain", compute_dtype=ms.float32, recompute=False):
        super().__init__()
        StubUNet.made_with = {"attention": attention, "recompute": recompute}
        self.dtype, layers = compute_dtype, forms.chosen()
        self.conv = layers.Conv(4, 4, 3)
        self.out = nn.SequentialCell(layers.GroupNorm(2, 4, eps=1e-5), layers.Conv(4, 4, 3))
        self.text = layers.Linear(config.context_dim, 4)
        self.label = layers.Linear(config.vector_dim, 4)
        self.time = layers.Linear(1, 4)

    def construct(self, x, timesteps, context, vector):
        x, context, vector = x.astype(self.dtype), context.astype(self.dtype), vector.astype(self.dtype)
        time = (timesteps.astype(self.dtype) / 1000).reshape(-1, 1)
        condition = self.text(context.mean(1)) + self.label(vector) + self.time(time)
        return self.out(self.conv(x) + condition.reshape(-1, 4, 1, 1)).astype(ms.float32)
