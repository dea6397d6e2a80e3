"""Damaged and odd params.yaml: whatever the text, load() gives Params or raises ParamsError with what to mend, quickly;
and what it accepts makes no part of the pipeline fail that is computed from settings alone."""

import contextlib
import random
import re
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline import hardware
from pipeline.data.buckets import buckets
from pipeline.diffusion import loss, timesteps
from pipeline.params import Params, ParamsError, load
from pipeline.plan import from_params, report
from pipeline.planning.timesteps import PARTS
from pipeline.planning.timesteps import lines as histogram
from pipeline.sampling import draw, samplers
from pipeline.sampling.picture import batches, pictures
from pipeline.stage import StageError
from pipeline.training import launch
from pipeline.training.objective import objective
from pipeline.training.rates import ema_decay, learning_rate

TEXT = (Path(__file__).resolve().parents[2] / "params.yaml").read_text(encoding="utf-8")
LIMIT = 20  # seconds for one file, on a busy machine
SCALARS = """
    0 1 2 3 -1 7 32 64 96 100 256 500 999 1000 1001 1024 4096 99999999 100000000 2147483647 2147483648
    18446744073709551616 0x10 0o17 010 1_000 +1 1. .5 -0.0 0.0 1.0 1.5 1e-5 1e400 -1e400 1e-300 1e-40 1e38 1e39
    .inf -.inf .nan 12:30:45 ~ null true false True yes no on off y n 2026-01-01 2026-13-45 2026-01-01T10:00:00Z
    '' "" 'a' "\\0" "\\ud83d" "\\u2028" text auto CPU Ascend plain flash flash_padded O0 O1 8GB 0GB 59GB 0.0GB a:1
    a:0 a:65536 [::1]:80 tiny sdxl-base outs outs/x . / .. ~/pictures data/images float32 float16 bfloat16 raw ema
    epsilon v center random moments mean constant linear cosine adamw adafactor earlier later range l2 huber zeros
    flow logit_normal sigmoid beta exponential snr cosine_with_restarts polynomial wsd
    empty [] {} [1] [0,0,0] [255,255,256] [500,500] [a,b] {a: 1} [[[[]]]] &a [*a] *a !!int '5'
    !!python/object:os.system !!binary aGk= !!float 5 = << - ? : | > % @ ` # [ { } ] " '
""".split()
SCALARS += [
    '[{pattern: "*", freeze: true}]',
    '[{pattern: "*.bias", learning_rate: 0.5}]',
    '[{pattern: "![", freeze: true}]',
    "[{path: a.safetensors, weight: -0.5}]",
    '[{path: ../a}, {path: "\\0"}]',
]
SCALARS += ["9" * 400, "9" * 5000, "0x" + "f" * 5000, "[" * 200, "{a: " * 200, "a" * 3000]
SCALARS += ["{a: 1}", "!!set {a, b}", "!!int '5'", "!!float 5", "&a [*a]", "😀 日本", ""]
PIECES = ["\t", "  ", "\n", "\r", "\x00", "\x80", "\x85", "\ufeff", "\u2028", "---\n", "...\n", "%YAML 1.1\n"]
PIECES += ["[", "]", "{", "}", ",", "? ", ": ", "- ", "&x ", "*x ", "<<: *x\n", "!!x ", "|\n", ">-\n", "train:\n", "é"]
PIECES += ["#", "'", '"']


def fuzz(seconds: float, seed: int) -> int:
    """Try damaged files until the time is up; the number of them. Raises AssertionError with the seed and the file."""
    rng = random.Random(seed)
    end, count = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        while time.monotonic() < end:
            data = _damaged(rng)
            path.write_bytes(data)
            try:
                _within_limit(lambda: _try(path))
            except Exception as error:
                raise AssertionError(f"seed {seed}, case {count}: {type(error).__name__}: {error}\n{data!r}") from error
            count += 1
    return count


def _damaged(rng: random.Random) -> bytes:
    text = TEXT
    kind = rng.random()
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if kind < 0.6:
            text = _other_value(rng, text)
        elif kind < 0.8:
            text = _other_lines(rng, text)
        else:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(PIECES) + text[place + rng.choice((0, 0, 1, 5, 50)) :]
    data = text.encode("utf-8", "surrogatepass")
    if kind > 0.95:  # bytes that are no UTF-8, or a file cut short
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.randbytes(rng.choice((0, 1, 3))) + (data[place + 1 :] if rng.random() < 0.5 else b"")
    return data


def _other_value(rng: random.Random, text: str) -> str:
    """With one key's value replaced, or an item of a list."""
    places = list(re.finditer(r"(?m)^(?:  \w+: |    - )(.*?)(?= #|$)", text))
    chosen = rng.choice(places)
    old = chosen[1]
    new = rng.choice(SCALARS)
    if rng.random() < 0.2 and re.fullmatch(r"[0-9.e+-]+", old):  # a number near the old one
        new = rng.choice((f"{old}0", f"-{old}", f"{old}.5", f"1{old}", old[:-1] or "0"))
    return text[: chosen.start(1)] + new + text[chosen.end(1) :]


def _other_lines(rng: random.Random, text: str) -> str:
    """A line dropped, doubled, indented otherwise, or moved."""
    lines = text.split("\n")
    place = rng.randrange(len(lines))
    line = lines.pop(place)
    change = rng.randrange(5)
    if change == 1:
        lines[place:place] = [line, line]
    elif change == 2:
        lines.insert(place, " " * rng.randrange(5) + line.lstrip())
    elif change == 3:
        lines.insert(rng.randrange(len(lines) + 1), line)
    elif change == 4:
        lines.insert(place, line.replace(":", rng.choice((" :", "", "::", ":\t")), 1))
    return "\n".join(lines)


def _within_limit(action) -> None:
    def late(*_):
        raise TimeoutError(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT)
    try:
        action()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _try(path: Path) -> None:
    try:
        params = load(path)
    except ParamsError as error:
        said = str(error)
        assert str(path) in said and len(said) < 6000, "a message that names the file and can be read"
        if "cannot be used as it stands" in said:
            keys = [line.split(": ")[0] for line in said.splitlines()[1:]]
            assert keys and all(key.strip() for key in keys), "the path of each key"
        return
    use(params)


def use(params: Params) -> None:
    """What is computed from settings alone."""
    train, index = params.train, params.index
    sizes = buckets(index.resolution, index.bucket_step) if index.buckets and index.resolution <= 2048 else []
    assert not index.buckets or index.resolution > 2048 or sizes
    found = objective(params.diffusion, train, 0.13025)
    chances, weights = found.chances, found.weights.astype(np.float32)
    assert np.isfinite(chances).all() and (chances >= 0).all() and abs(chances.sum() - 1) < 1e-6
    assert (timesteps.draw(chances, train.seed, 3, np.arange(4)) < 1000).all()
    between = timesteps.draw_between(chances, train.seed, 3, np.arange(4))
    assert ((between >= 0) & (between <= 1000)).all()
    thresholds = loss.huber_thresholds(train.huber_c, found.alphas).astype(np.float32)
    assert np.isfinite(thresholds).all() and (thresholds > 0).all()
    assert np.isfinite(weights).all() and weights.any()
    steps = train.steps or train.epochs
    places = {0, steps // 2, steps - 1, min(train.lr_warmup_steps, steps - 1)}
    if train.steps:
        rates = [
            learning_rate(
                step,
                steps,
                train.learning_rate,
                train.lr_scheduler,
                train.lr_warmup_steps,
                num_cycles=train.lr_num_cycles,
                power=train.lr_power,
                end=train.lr_end,
                decay_steps=train.lr_decay_steps,
            )  # fmt: skip
            for step in places
        ]
        assert max(rates) > 0 and np.isfinite(np.float32(rates)).all()
    assert all(np.float32(ema_decay(step, train.ema_decay)) < 1 for step in places)
    for value in (train.adam_beta1, train.adam_beta2):
        assert 1 - np.float32(value) > 0
    wanted = pictures(params.sample)
    for one in wanted:
        noise = draw.noise_of(one.seed, one.number, (1, 1, 2, 2))
        x, times, sigmas = samplers.begin(
            params.sample.sampler, noise, one.steps, params.diffusion.prediction, params.diffusion.zero_terminal_snr,
            params.diffusion.flow_shift,
        )  # fmt: skip
        assert x.shape == noise.shape and len(times) == one.steps and np.isfinite(sigmas).all()
        assert all(text.encode() or not text for text in (one.prompt, one.negative_prompt or ""))
    assert sorted({index for chosen, _ in batches(wanted, params.sample.batch_size) for index in chosen}) == [
        *range(len(wanted))
    ]
    with contextlib.suppress(StageError):  # on a machine without an NPU
        assert all(line for line in launch.command(params.device, ["train.py"], Path("logs")))
    with contextlib.suppress(StageError):
        hardware.check(params, "device", "cache_latents", "cache_text", "train", "sample")
    assert len(histogram(found)) == PARTS + 1
    assert "Caches of" in report(from_params(params, 1000))
