"""Damaged LoRAs, of kohya's form and of diffusers', which model.loras names: whatever the bytes are, they are merged or a
StageError says why not."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from pipeline.stage import StageError
from pipeline.weights import safetensors
from pipeline.weights.adapters import peft
from pipeline.weights.adapters.apply import Changed, apply, why_no_numbers
from pipeline.weights.source import open_weights
from tests.fuzz.cases import try_cases
from tests.fuzz.fuzz_safetensors import damaged_safetensors, dumped, unsound
from tests.weights.test_diffusers import FOLDER, SMALL

LORAS = FOLDER.with_name("loras")


def fuzz(seconds: float, seed: int) -> int:
    """Try damaged files until the time is up; the number tried. Raises AssertionError that names the seed and case."""
    base = open_weights(FOLDER, FOLDER, SMALL)
    files = [LORAS / f"{name}.safetensors" for name in ("diffusers", "lora", "lokr")]
    forms: list[Callable] = [*map(damaged_safetensors, files), _with_metadata(files[0])]

    def check(folder: Path, seed: int, number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        path = rng.choice(forms)(rng, folder)
        try:
            changed = [tensor for tensor in apply(base, [(path, 0.5)], SMALL).values() if isinstance(tensor, Changed)]
            for tensor in rng.sample(changed, min(len(changed), 3)):
                assert sum(len(chunk) for chunk in tensor.chunks()) == tensor.nbytes
                assert why_no_numbers("x", tensor)
        except StageError as error:
            said = str(error)
            assert str(path) in said and len(said) < 50_000, said[:500]
            assert all(letter.isprintable() or letter == "\n" for letter in said), repr(said[:500])
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {number}: {type(error).__name__}: {error!s:.500}") from error

    return try_cases(check, seconds, seed)


def _with_metadata(base: Path) -> Callable[[random.Random, Path], Path]:
    """The same tensors, with other alphas in what diffusers says of them."""
    raw = base.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header, said = json.loads(raw[8:start]), json.loads(safetensors.metadata(base)[peft.METADATA])
    own = {key: value for key, value in said.items() if "alpha" in key or "rslora" in key}

    def damaged(rng: random.Random, folder: Path) -> Path:
        text = dumped(unsound(rng, own)).decode(errors="surrogatepass")
        header["__metadata__"] = {peft.METADATA: text if rng.random() < 0.9 else text[:-1]}
        written = json.dumps(header).encode()
        (folder / "x.safetensors").write_bytes(len(written).to_bytes(8, "little") + written + raw[start:])
        return folder / "x.safetensors"

    return damaged
