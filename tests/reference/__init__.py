"""Facts taken from published files."""

import gzip
from pathlib import Path


def sdxl_base_tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    """The 2,514 tensors of sd_xl_base_1.0.safetensors in file order: (Stability's name, MindSpore's name, shape)."""
    lines = gzip.decompress((Path(__file__).parent / "sdxl_base_tensors.tsv.gz").read_bytes()).decode().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    return [(s, m, () if shape == "scalar" else tuple(map(int, shape.split("x")))) for s, m, shape in rows]
