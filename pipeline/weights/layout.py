"""The tensors of an SDXL checkpoint: Stability's names, in the order of `sd_xl_base_1.0.safetensors`, with shapes.

Follows the module trees of generative-models' `UNetModel` and `AutoencoderKL`, transformers' `CLIPTextModel` and
OpenCLIP's text tower. Pure Python: the full size is described without being allocated."""

from collections.abc import Iterator

from pipeline.models.config import CLIPConfig, SDXLConfig, UNetConfig, VAEConfig
from pipeline.weights.names import PREFIX

Shape = tuple[int, ...]
Entries = Iterator[tuple[str, Shape]]


def shapes(config: SDXLConfig) -> dict[str, Shape]:
    """Every tensor of a checkpoint of this configuration: Stability's name -> shape, in file order."""
    parts = {
        "unet": _unet(config.unet),
        "clip_l": _clip_l(config.clip_l),
        "clip_g": _clip_g(config.clip_g),
        "vae": _vae(config.vae),
    }
    return {PREFIX[part] + name: shape for part in PREFIX for name, shape in parts[part]}


def _layer(name: str, *shape: int) -> Entries:
    """A layer's weight of this shape, and its bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Entries:
    yield from _layer(name, outputs, inputs, kernel, kernel)


# UNet


def _unet(config: UNetConfig) -> Entries:
    channels = [config.model_channels * multiplier for multiplier in config.channel_mult]
    embedding = 4 * config.model_channels
    last = len(channels) - 1
    yield from _layer("time_embed.0", embedding, config.model_channels)
    yield from _layer("time_embed.2", embedding, embedding)
    yield from _layer("label_emb.0.0", embedding, config.vector_dim)
    yield from _layer("label_emb.0.2", embedding, embedding)

    yield from _conv("input_blocks.0.0", config.latent_channels, config.model_channels)
    skips = [config.model_channels]  # channels that each input block hands to an output block
    width, index = config.model_channels, 1
    for level, outputs in enumerate(channels):
        for _ in range(config.num_res_blocks):
            yield from _residual(f"input_blocks.{index}.0", width, outputs, embedding)
            width = outputs
            yield from _transformer(
                f"input_blocks.{index}.1", width, config.context_dim, config.transformer_depth[level]
            )
            skips.append(width)
            index += 1
        if level < last:
            yield from _conv(f"input_blocks.{index}.0.op", width, width)
            skips.append(width)
            index += 1

    yield from _residual("middle_block.0", width, width, embedding)
    yield from _transformer("middle_block.1", width, config.context_dim, config.transformer_depth[last])
    yield from _residual("middle_block.2", width, width, embedding)

    index = 0
    for level in reversed(range(len(channels))):
        for block in range(config.num_res_blocks + 1):
            yield from _residual(f"output_blocks.{index}.0", width + skips.pop(), channels[level], embedding)
            width = channels[level]
            depth = config.transformer_depth[level]
            yield from _transformer(f"output_blocks.{index}.1", width, config.context_dim, depth)
            if level > 0 and block == config.num_res_blocks:
                yield from _conv(f"output_blocks.{index}.{2 if depth else 1}.conv", width, width)
            index += 1

    yield from _layer("out.0", config.model_channels)
    yield from _conv("out.2", config.model_channels, config.latent_channels)


def _residual(name: str, inputs: int, outputs: int, embedding: int) -> Entries:
    yield from _layer(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", inputs, outputs)
    yield from _layer(f"{name}.emb_layers.1", outputs, embedding)
    yield from _layer(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", inputs, outputs, kernel=1)


def _transformer(name: str, width: int, context: int, depth: int) -> Entries:
    """Nothing for depth 0: that level has no attention."""
    if depth == 0:
        return
    yield from _layer(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width)
    for block in range(depth):
        inner = f"{name}.transformer_blocks.{block}"
        yield from _attention(f"{inner}.attn1", width, width)
        yield from _layer(f"{inner}.ff.net.0.proj", 8 * width, width)  # GEGLU: value and gate, 4 * width each
        yield from _layer(f"{inner}.ff.net.2", width, 4 * width)
        yield from _attention(f"{inner}.attn2", width, context)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{inner}.{norm}", width)
    yield from _layer(f"{name}.proj_out", width, width)


def _attention(name: str, width: int, context: int) -> Entries:
    yield f"{name}.to_q.weight", (width, width)
    yield f"{name}.to_k.weight", (width, context)
    yield f"{name}.to_v.weight", (width, context)
    yield from _layer(f"{name}.to_out.0", width, width)


# Text encoders


def _clip_l(config: CLIPConfig) -> Entries:
    width, model = config.width, "transformer.text_model"
    yield f"{model}.embeddings.token_embedding.weight", (config.vocab_size, width)
    yield f"{model}.embeddings.position_embedding.weight", (config.context_length, width)
    for index in range(config.layers):
        layer = f"{model}.encoder.layers.{index}"
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{projection}", width, width)
        yield from _layer(f"{layer}.layer_norm1", width)
        yield from _layer(f"{layer}.mlp.fc1", 4 * width, width)
        yield from _layer(f"{layer}.mlp.fc2", width, 4 * width)
        yield from _layer(f"{layer}.layer_norm2", width)
    yield from _layer(f"{model}.final_layer_norm", width)


def _clip_g(config: CLIPConfig) -> Entries:
    width = config.width
    yield "model.positional_embedding", (config.context_length, width)
    yield "model.text_projection", (width, config.projection_dim)
    yield "model.logit_scale", ()
    for index in range(config.layers):
        layer = f"model.transformer.resblocks.{index}"
        yield from _layer(f"{layer}.ln_1", width)
        yield f"{layer}.attn.in_proj_weight", (3 * width, width)
        yield f"{layer}.attn.in_proj_bias", (3 * width,)
        yield from _layer(f"{layer}.attn.out_proj", width, width)
        yield from _layer(f"{layer}.ln_2", width)
        yield from _layer(f"{layer}.mlp.c_fc", 4 * width, width)
        yield from _layer(f"{layer}.mlp.c_proj", width, 4 * width)
    yield "model.token_embedding.weight", (config.vocab_size, width)
    yield from _layer("model.ln_final", width)


# VAE


def _vae(config: VAEConfig) -> Entries:
    channels = [config.channels * multiplier for multiplier in config.channel_mult]
    last, latent = len(channels) - 1, config.latent_channels

    yield from _conv("encoder.conv_in", 3, config.channels)
    width = config.channels
    for level, outputs in enumerate(channels):
        for block in range(config.num_res_blocks):
            yield from _vae_residual(f"encoder.down.{level}.block.{block}", width, outputs)
            width = outputs
        if level < last:
            yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from _vae_middle("encoder.mid", width)
    yield from _layer("encoder.norm_out", width)
    yield from _conv("encoder.conv_out", width, 2 * latent)  # mean and log variance

    yield from _conv("decoder.conv_in", latent, width)
    yield from _vae_middle("decoder.mid", width)
    for level, outputs in enumerate(channels):  # listed from the finest level, run from the coarsest
        width = channels[min(level + 1, last)]
        for block in range(config.num_res_blocks + 1):
            yield from _vae_residual(f"decoder.up.{level}.block.{block}", width, outputs)
            width = outputs
        if level > 0:
            yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from _layer("decoder.norm_out", channels[0])
    yield from _conv("decoder.conv_out", channels[0], 3)

    yield from _conv("quant_conv", 2 * latent, 2 * latent, kernel=1)
    yield from _conv("post_quant_conv", latent, latent, kernel=1)


def _vae_residual(name: str, inputs: int, outputs: int) -> Entries:
    yield from _layer(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _layer(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs, kernel=1)


def _vae_middle(name: str, width: int) -> Entries:
    yield from _vae_residual(f"{name}.block_1", width, width)
    yield from _layer(f"{name}.attn_1.norm", width)
    for projection in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.attn_1.{projection}", width, width, kernel=1)
    yield from _vae_residual(f"{name}.block_2", width, width)
