"""What a shard says of itself to a person who opens it with pandas or DuckDB: the meaning of every column, in the
file's metadata under `about`, as JSON."""

from pipeline.models.config import CONFIGS

_NAME = "blake2b, 16 bytes, of what the row is made from"
_NUMBERS = "blake2b, 16 bytes, of the parameters under `fingerprint` in this metadata"
_SUMS = (
    "two little-endian uint64: of the row's names and numbers, and of its payload (pipeline/cache/format/checksum.py)"
)
_CHANNELS = {
    "moments": "the first half of the channels is the mean of the VAE's posterior, the second half its log variance",
    "sample": "one draw from the VAE's posterior",
    "mean": "the mean of the VAE's posterior",
}

_MASKS = {
    "masked": "1: the row has a mask",
    "mask": {
        "dtype": "u1",
        "order": "C",
        "shape": ["masked", "latent_height", "latent_width"],
        "holds": "how much the loss of each latent pixel counts, from 0 (train.mask_floor) to 255 (in full)",
    },
}


def about(kind: str, fingerprint: dict, masked: bool = False) -> dict:
    """Column -> what it holds, for a shard of this kind ("latents" | "text") whose rows have this fingerprint; `masked`:
    some of them have a mask."""
    return {"latents": _latents, "text": _text}[kind](fingerprint) | (_MASKS if masked else {})


def _latents(fingerprint: dict) -> dict:
    config = CONFIGS.get(fingerprint.get("config"))
    return {
        "row": f"{_NAME}: the picture, whether mirrored, and the number of the crop",
        "image": "blake2b, 16 bytes, of the picture's file; `image` in outs/index/images.parquet has its path",
        "fingerprint": _NUMBERS,
        "latent": {
            "dtype": "<f2",  # NumPy's word for little-endian float16
            "order": "C",
            "shape": ["channels", "latent_height", "latent_width"],
            "channels": _CHANNELS.get(fingerprint.get("store")),
            "scale": "none applied; multiply the mean or the draw by scaling_factor to get what the UNet takes",
            "scaling_factor": config and config.vae.scaling_factor,
        },
        "original_height, original_width": "pixels of the upright picture before it was resized",
        "crop_top, crop_left": "pixels of the resized picture that were cut off above and on the left",
        "target_height, target_width": "pixels of the bucket: what was encoded",
        "flip": "1: mirrored left to right",
        "crop": "number of the random crop, from 0",
        "checksum": _SUMS,
    }


def _text(fingerprint: dict) -> dict:
    config = CONFIGS.get(fingerprint.get("config"))
    widths = f"the first {config.clip_l.width} are CLIP-L's, the other {config.clip_g.width} bigG's" if config else None
    return {
        "row": f"{_NAME}: the caption; `caption` in outs/index/captions.parquet has its text",
        "fingerprint": _NUMBERS,
        "context": {
            "dtype": "<f2",
            "order": "C",
            "shape": ["tokens", "width"],
            "width": widths,
            "holds": "hidden states of the last layer but one, without the final norm",
        },
        "pooled": {
            "dtype": "<f4",
            "order": "C",
            "shape": ["pooled_width"],
            "holds": "bigG's output at the end-of-text token of the first chunk, after final norm and projection",
        },
        "caption_tokens": "tokens of the caption with its begin and end, before anything was cut",
        "checksum": _SUMS,
    }
