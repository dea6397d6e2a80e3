"""The schema of params.yaml: one class per section, no defaults (what is not in params.yaml is not in the run).

Reading needs no MindSpore, so a wrong key stops a stage at once. Errors name the key's path and the allowed values."""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ParamsError(ValueError):
    """params.yaml does not fit the schema; the message lists each key with what was found and what is wanted."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
    images: str


class Model(Section):
    config: Literal["tiny", "sdxl-base"]
    base: str
    vae: str
    tokenizer: str


class Device(Section):
    target: Literal["auto", "CPU", "Ascend"]


class Index(Section):
    resolution: PositiveInt
    bucket_step: PositiveInt
    buckets: bool
    min_side: PositiveInt
    max_pixels: PositiveInt
    max_rejected: Share
    workers: PositiveInt


class CacheLatents(Section):
    store: Literal["moments", "sample", "mean"]
    crop: Literal["center", "random"]
    crops: PositiveInt
    flip: bool
    interpolation: Literal["lanczos", "bicubic", "bilinear", "area"]
    background: Annotated[list[Byte], Field(min_length=3, max_length=3)]
    precision: Literal["float32", "bfloat16"]
    batch_size: PositiveInt
    workers: PositiveInt


class CacheText(Section):
    chunks: Annotated[int, Field(ge=1, le=3)]
    precision: Literal["float32", "bfloat16"]
    batch_size: PositiveInt


class Diffusion(Section):
    prediction: Literal["epsilon", "v"]
    zero_terminal_snr: bool


class Train(Section):
    seed: int
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: Annotated[float, Field(gt=0)]


class Merge(Section):
    weights: Literal["raw", "ema"]
    dtype: Literal["float16", "bfloat16", "float32"]


class Sample(Section):
    prompts: Annotated[list[str], Field(min_length=1)]
    steps: PositiveInt
    guidance_scale: Annotated[float, Field(ge=0)]
    width: PositiveInt
    height: PositiveInt
    seed: int
    batch_size: PositiveInt


class Params(Section):
    data: Data
    model: Model
    device: Device
    index: Index
    cache_latents: CacheLatents
    cache_text: CacheText
    diffusion: Diffusion
    train: Train
    merge: Merge
    sample: Sample


class _Yaml12Loader(yaml.SafeLoader):
    """`dvc exp run -S train.learning_rate=1e-5` writes `1e-05`: a number in YAML 1.2, a string in PyYAML's YAML 1.1."""


_Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml. Raises ParamsError."""
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from None
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, e['loc'])) or 'the whole file'}: {e['msg']}" + (f" (found {e['input']!r})" if e["type"] != "missing" else "")
            for e in error.errors()
        ]
        raise ParamsError(f"{path} does not fit the schema in pipeline/params.py:\n" + "\n".join(lines)) from None
