"""A cache job with a small deterministic encoder in NumPy that notes what it encodes."""

import hashlib
import threading

import numpy as np

from pipeline.cache.building import engine
from pipeline.cache.building.shelf import Wanted
from pipeline.cache.format import lookup, shards
from pipeline.cache.format.names import latent_row
from pipeline.data import masks

GROUPS = [(64, 64), (32, 96), (64, 32)]  # height, width


def content(number: int) -> bytes:
    """The hash of picture `number`."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def centred(number: int, focus: int) -> bytes:
    """That of the picture with a centre of interest."""
    return masks.content(content(number), None, b"focus%d" % focus)


class Encoder:
    """Latents that follow from the input alone. calls: the rows that went in, padding left out."""

    def __init__(self, delay: float = 0.0):
        self.encoded: list[bytes] = []
        self.calls = 0
        self._pause = threading.Event()
        self._delay = delay

    def __call__(self, inputs: np.ndarray) -> tuple[np.ndarray]:
        self.calls += 1
        self.encoded += [bytes(name) for name in dict.fromkeys(item.tobytes()[:16] for item in inputs)]
        self._pause.wait(self._delay)
        return (np.cumsum(inputs.reshape(len(inputs), -1).astype(np.float32) / 64, axis=1),)


def job(
    pictures,
    encoder: Encoder,
    fingerprint: dict | None = None,
    batch_size: int = 4,
    workers: int = 2,
    views: int = 1,
    **changes,
) -> engine.Job:
    """Latents of pictures, numbers or contents in any order, repeats allowed. A quarter of them has a mask; each is
    there in so many buckets (`views`), under one name."""
    images = {content(one) if isinstance(one, int) else one for one in pictures}
    known = sorted(
        (latent_row(image, False, 0), GROUPS[(image[0] % 2 + view) % 3], image)
        for image in images
        for view in range(views)
    )
    rows = lookup.as_names([row for row, _, _ in known])
    groups = np.array([group for _, group, _ in known], np.int32).reshape(-1, 2)
    wanted = Wanted(shards.LATENTS, fingerprint or {"vae": "0" * 32}, rows, groups)

    def prepare(index: int) -> tuple[np.ndarray, dict]:
        _, (height, width), image = known[index]
        input_ = np.resize(np.frombuffer(rows[index].tobytes(), np.uint8), (8, height // 8, width // 8))
        numbers = dict.fromkeys(("original_height", "original_width", "crop_top", "crop_left", "flip", "crop"), 0)
        if image[1] % 4 == 0:
            numbers["mask"] = np.resize(np.frombuffer(image, np.uint8), height * width // 64).tobytes()
        return input_, {"image": image, "target_height": height, "target_width": width, **numbers}

    def finish(index: int, outputs: tuple[np.ndarray, ...]) -> dict:
        height, width = known[index][1]
        return {
            "latent": engine.as_float16(outputs[0], f"picture {index}", "mend it"),
            "channels": 8,
            "latent_height": height // 8,
            "latent_width": width // 8,
        }

    parts = {"prepare": prepare, "make_encoder": lambda: encoder, "finish": finish, **changes}
    return engine.Job(wanted, unit="image", batch_size=batch_size, workers=workers, **parts)


def folder_bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
