"""Damaged weights: safetensors files, MindSpore's .ckpt and diffusers' index.json, changed at random.

Whatever the bytes are, they are read or a StageError says why not, within seconds and without much memory, and no
tensor reaches beyond its file."""

import contextlib
import copy
import io
import itertools
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.stage import StageError
from pipeline.weights import ckpt, marks, safetensors
from pipeline.weights.files import read_file
from pipeline.weights.names import to_mindspore
from pipeline.weights.source import open_weights
from pipeline.weights.tensor import Tensor, size
from tests.weights import synthetic
from tests.weights.test_diffusers import FOLDER, SMALL

LONGEST = 10  # seconds of one case
MOST_MEMORY = 500 << 20  # bytes that all cases together may add

_DEEP = "as deep as no parser goes"
_NUMBERS = (-1, 0, 1, 2, 255, 1 << 31, (1 << 31) - 1, 1 << 62, 1 << 63, 1 << 64, 10**400, 1.0, 1e308)
_VALUES = (
    None,
    True,
    "",
    "F32",
    "F99",
    "\ud800",
    _DEEP,
    [],
    [[]],
    {},
    {"dtype": "F32"},
    "a" * 5000,
    "x\0\n\x1b[31m",
    *_NUMBERS,
)
_NAMES = (
    "v_pred",
    "ztsnr",
    "__metadata__",
    "",
    "\ud800",
    "a.lora_up.weight",
    "model_ema.decay",
    "n" * 9000,
    "x\x1b[2J",
)


def fuzz(seconds: float, seed: int) -> int:
    """Try damaged files until the time is up; the number tried. Raises AssertionError that names the seed and case."""
    end = time.monotonic() + seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = synthetic.write_checkpoint(folder / "base.safetensors", SMALL)
        few = _few(base, folder / "few.safetensors")
        small, whole = ([damaged_safetensors(file), _ckpt(folder, file)] for file in (few, base))
        folders = [_folder(Path(shutil.copytree(FOLDER, folder / "diffusers"))), *[_folder(_shards(few, folder))] * 3]
        forms: list[Callable] = [*whole, *folders, *small, *small, *small]
        for case in itertools.count():
            if time.monotonic() > end:
                return case
            rng = random.Random(f"{seed} {case}")
            start = time.monotonic()
            try:
                _try(rng.choice(forms)(rng, folder), rng)
            except Exception as error:
                raise AssertionError(f"seed {seed}, case {case}: {type(error).__name__}: {error!s:.500}") from error
            taken = time.monotonic() - start
            assert taken < LONGEST, f"seed {seed}, case {case}: {taken:.0f} s"
            used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            assert used < MOST_MEMORY, f"seed {seed}, case {case}: {used:,} bytes"
    raise AssertionError


def _try(path: Path, rng: random.Random) -> None:
    """Read it as the convert stage does; what is printed or raised must be fit to print."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for read in (_read, lambda path: marks.check(path, "epsilon", False), _open):
            try:
                found = read(path) or []
                for tensor in rng.sample(found, min(len(found), 5)):
                    assert sum(len(chunk) for chunk in tensor.chunks()) == tensor.nbytes
            except StageError as error:
                assert str(error).isprintable() or all(c.isprintable() or c == "\n" for c in str(error)), repr(error)
                assert len(str(error)) < 50_000 and (str(path) in str(error) or path.name in str(error))
    said.getvalue().encode()


def _read(path: Path) -> list[Tensor]:
    """The tensors of a single file, each of which has bytes of its own inside it."""
    if path.is_dir():
        return []
    found, end = list(read_file(path).values()), 0
    for span in sorted((span for tensor in found for span in tensor.spans), key=lambda span: (span.offset, span.size)):
        assert span.offset >= end, "two tensors share bytes"
        end = span.offset + span.size
    assert end <= path.stat().st_size, "a tensor ends behind the file"
    return found


def _open(path: Path) -> list[Tensor]:
    tensors = list(open_weights(path, path, SMALL).values())
    assert all(tensor.nbytes == size(tensor.dtype, tensor.shape) for tensor in tensors)
    return tensors


def _few(base: Path, path: Path) -> Path:
    """A file of some of the base's tensors, whose header the damage hits more often."""
    tensors = dict(list(safetensors.read(base).items())[::120])
    with safetensors.Writer(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor.array(), tensor.dtype)
    return path


def _shards(few: Path, folder: Path) -> Path:
    """A folder with a UNet of two shards and nothing else."""
    unet = folder / "shards/unet"
    unet.mkdir(parents=True)
    names = list(safetensors.read(few))
    shutil.copy(few, unet / "a.safetensors")
    with safetensors.Writer(unet / "b.safetensors", {"b": ("float32", (1,))}) as writer:
        writer.begin("b", "float32", (1,))
        writer.write(bytes(4))
    index = {
        "metadata": {"total_size": 4},
        "weight_map": {"b": "b.safetensors"} | dict.fromkeys(names, "a.safetensors"),
    }
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return unet.parent


# Damage


def damaged_safetensors(base: Path) -> Callable[[random.Random, Path], Path]:
    raw = base.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])

    def damaged(rng: random.Random, folder: Path) -> Path:
        path = folder / "x.safetensors"
        if rng.random() < 0.3:
            path.write_bytes(_changed(rng, raw, start if rng.random() < 0.9 else len(raw)))
            return path
        text = dumped(unsound(rng, header))
        if rng.random() < 0.2:
            text = _changed(rng, text, len(text))
        length = len(text) if rng.random() < 0.95 else rng.choice([0, 7, len(text) + 1, 1 << 40, (1 << 64) - 1])
        path.write_bytes(length.to_bytes(8, "little") + text + raw[start:])
        return path

    return damaged


def _ckpt(folder: Path, base: Path) -> Callable[[random.Random, Path], Path]:
    with ckpt.Writer(folder / "sound.ckpt") as writer:
        for name, tensor in safetensors.read(base).items():
            writer.add(to_mindspore(name), tensor.array(), tensor.dtype)
    raw = (folder / "sound.ckpt").read_bytes()

    def damaged(rng: random.Random, folder: Path) -> Path:
        path = folder / "x.ckpt"
        part = raw if rng.random() < 0.7 else raw[: rng.randrange(1, 2000)]
        path.write_bytes(_changed(rng, part, rng.choice([200, 2000, len(part)])))
        return path

    return damaged


def _folder(whole: Path) -> Callable[[random.Random, Path], Path]:
    (whole / "scheduler").mkdir()
    index = whole / "unet/diffusion_pytorch_model.safetensors.index.json"
    scheduler = whole / "scheduler/scheduler_config.json"
    sound = {
        index: json.loads(index.read_text()),
        scheduler: {"prediction_type": "epsilon", "_class_name": "EulerDiscreteScheduler"},
    }

    def damaged(rng: random.Random, _: Path) -> Path:
        for path, content in sound.items():
            text = dumped(unsound(rng, content) if rng.random() < 0.7 else content)
            path.write_bytes(_changed(rng, text, len(text)) if rng.random() < 0.3 else text)
        return whole

    return damaged


def _changed(rng: random.Random, raw: bytes, within: int) -> bytes:
    """Bytes changed, cut, doubled, put in or left out somewhere in the first `within`."""
    out = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 50])):
        place, size = rng.randrange(min(within, len(out)) or 1), rng.choice([1, 1, 2, 8, 100])
        match rng.randrange(6):
            case 0:
                out[place : place + size] = rng.randbytes(size)
            case 1:
                out[place : place + 1] = bytes([rng.choice([0, 1, 0x0A, 0x1A, 0x7B, 0x7F, 0x80, 0xFF])])
            case 2:
                del out[place : place + size]
            case 3:
                out[place:place] = rng.choice([rng.randbytes(size), b"\xff" * size, b"[" * 20_000, b"\x08\x01" * 1000])
            case 4:
                out[place:place] = out[place : place + 10 * size]
            case 5:
                del out[place:]
        out = out or bytearray(1)
    return bytes(out)


def dumped(content: dict) -> bytes:
    return json.dumps(content).replace(json.dumps(_DEEP), "[" * 20_000).encode()


def unsound(rng: random.Random, content: dict) -> dict:
    """A JSON object with some of its names and values, at any depth, replaced."""
    out = json.loads(json.dumps(content))
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = out
        while place:
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
                place = place[key]
                continue
            match rng.randrange(5):
                case 0:
                    place[key] = rng.choice(_VALUES)
                case 1 if isinstance(place[key], int):
                    place[key] += rng.choice([-8, -1, 1, 2, 1 << 40])
                case 2 if isinstance(place, dict):
                    place[rng.choice(_NAMES)] = place.pop(key)
                case 3:
                    place[key] = copy.deepcopy(rng.choice(list(place.values()) if isinstance(place, dict) else place))
                case _:
                    del place[key]
            break
    return out
