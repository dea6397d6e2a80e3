"""A run of SDXL at full size, for tests of the plan."""

from pipeline.planning.run import Run

FULL = Run(
    config="sdxl-base", images=100_000, resolution=1024, devices=8, batch_size=1, accumulation=1, steps=None, epochs=2,
    precision="bfloat16", weights_dtype="float32", optimizer="adamw", shard_optimizer=False, ema=False,
    gradient_checkpointing=True,
    attention="flash", latent_channels=8, chunks=1,
)  # fmt: skip
