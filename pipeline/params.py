"""The schema of params.yaml: one class per section, no defaults (what is not in params.yaml is not in the run).

Reading needs no MindSpore, so a wrong key stops a stage at once. Errors name the key's path and the allowed values."""

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Share = Annotated[float, Field(ge=0, le=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


class ParamsError(ValueError):
    """params.yaml does not fit the schema; the message lists each key with what was found and what is wanted."""


def key_error(key: str, message: str) -> PydanticCustomError:
    """What a check across keys raises: the message, with the key at which it shall be reported (from the model's own
    path)."""
    return PydanticCustomError("combination", "{message}", {"key": key, "message": message})


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
    workers: PositiveInt
    nodes: PositiveInt
    node_rank: NotNegativeInt
    master: Annotated[str, Field(pattern=r"^[^\s:]+:\d+$")]
    attention: Literal["auto", "plain", "tiled", "flash", "flash_padded"]
    sink_size: NotNegativeInt
    jit_level: Literal["O0", "O1"]
    max_device_memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)?GB$")] | None
    compile_cache: bool

    @model_validator(mode="after")
    def _possible(self):
        if self.node_rank >= self.nodes:
            raise key_error("node_rank", f"must be below nodes ({self.nodes}), found {self.node_rank}")
        if self.target == "CPU":
            if self.attention.startswith("flash"):
                raise key_error(
                    "attention", f"{self.attention} runs on Ascend only and target is CPU; wanted auto, plain or tiled"
                )
            if self.sink_size > 0:
                raise key_error(
                    "sink_size",
                    f"the data sink runs on Ascend only and target is CPU; wanted 0, found {self.sink_size}",
                )
            if self.max_device_memory is not None:
                raise key_error(
                    "max_device_memory",
                    f"limits an NPU's memory and target is CPU; wanted null, found {self.max_device_memory}",
                )
        return self


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

    @model_validator(mode="after")
    def _possible(self):
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise key_error(
                "zero_terminal_snr",
                "true needs diffusion.prediction v: without signal the noise is the input (arXiv 2305.08891, 3.2)",
            )
        return self


class Train(Section):
    seed: NotNegativeInt
    steps: PositiveInt | None
    epochs: PositiveInt | None
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt

    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    scale_lr: bool
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"]
    lr_warmup_steps: NotNegativeInt
    optimizer: Literal["adamw", "adafactor"]
    adam_beta1: Annotated[float, Field(ge=0, lt=1)]
    adam_beta2: Annotated[float, Field(ge=0, lt=1)]
    adam_epsilon: Annotated[float, Field(gt=0)]
    weight_decay: NotNegative
    max_grad_norm: NotNegative
    shard_optimizer: Literal["auto"] | bool
    ema: bool
    ema_decay: Annotated[float, Field(ge=0, lt=1)]

    timestep_bias_strategy: Literal["none", "earlier", "later", "range"]
    timestep_bias_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    timestep_bias_begin: Timestep
    timestep_bias_end: Annotated[int, Field(ge=0, le=1000)]
    timestep_bias_portion: Share
    snr_gamma: Annotated[float, Field(gt=0)] | None
    debiased_estimation: bool
    loss_type: Literal["l2", "huber"]
    huber_c: Annotated[float, Field(gt=0)]
    noise_offset: NotNegative
    caption_dropout: Share
    caption_dropout_with: Literal["empty", "zeros"]

    precision: Literal["float32", "float16", "bfloat16"]
    param_fp16: bool
    loss_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    gradient_checkpointing: bool

    validation_share: Annotated[float, Field(ge=0, lt=1)]
    validation_interval: PositiveInt
    validation_timesteps: Annotated[list[Timestep], Field(min_length=1)]
    sample_interval: NotNegativeInt
    log_interval: PositiveInt
    checkpointing_steps: PositiveInt
    checkpoints_total_limit: PositiveInt

    @model_validator(mode="after")
    def _possible(self):
        if (self.steps is None) == (self.epochs is None):
            raise key_error(
                "steps", f"give one of steps and epochs and set the other to null, found {self.steps} and {self.epochs}"
            )
        if self.snr_gamma is not None and self.debiased_estimation:
            raise key_error(
                "debiased_estimation", "true needs snr_gamma null: both weight the loss by the signal-to-noise ratio"
            )
        if self.timestep_bias_strategy == "range" and self.timestep_bias_begin >= self.timestep_bias_end:
            raise key_error(
                "timestep_bias_begin",
                f"must be below timestep_bias_end ({self.timestep_bias_end}), found {self.timestep_bias_begin}",
            )
        if self.param_fp16 and self.precision != "float16":
            raise key_error("param_fp16", f"true needs precision float16, found {self.precision}")
        if self.shard_optimizer is True and self.optimizer != "adamw":
            raise key_error("shard_optimizer", "true needs optimizer adamw: Adafactor's state is small already")
        if self.steps is not None and self.lr_warmup_steps > self.steps:
            raise key_error("lr_warmup_steps", f"must not be above steps ({self.steps}), found {self.lr_warmup_steps}")
        return self


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
    precision: Literal["float32", "float16", "bfloat16"]
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

    @model_validator(mode="after")
    def _possible(self):
        if self.train.precision == "bfloat16" and self.device.target == "CPU":
            raise key_error(
                "train.precision", "bfloat16 runs on Ascend only and device.target is CPU; wanted float32 or float16"
            )
        if self.device.attention.startswith("flash") and self.train.precision == "float32":
            raise key_error(
                "device.attention",
                "flash computes in float16 or bfloat16 and train.precision is float32; wanted auto, plain or tiled",
            )
        if self.device.sink_size > 0 and self.index.buckets:
            raise key_error(
                "device.sink_size",
                f"above 0 needs index.buckets false: a sink has one shape; found {self.device.sink_size}",
            )
        if self.device.sink_size > 0 and self.train.gradient_accumulation_steps > 1:
            raise key_error(
                "device.sink_size",
                f"above 0 needs train.gradient_accumulation_steps 1, found {self.train.gradient_accumulation_steps}",
            )
        return self


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
        lines = [f"  {_line(e)}" for e in error.errors()]
        raise ParamsError(f"{path} does not fit the schema in pipeline/params.py:\n" + "\n".join(lines)) from None


def _line(error: dict) -> str:
    if error["type"] == "combination":
        return f"{'.'.join([*map(str, error['loc']), error['ctx']['key']])}: {error['msg']}"
    found = "" if error["type"] == "missing" else f" (found {error['input']!r})"
    return f"{'.'.join(map(str, error['loc'])) or 'the whole file'}: {error['msg']}{found}"
