"""A picture that is replaced in place with its size and times kept: DVC does not see it, cache_latents says the way
out, and the way leads out. Walked through DVC itself, with an encoder that needs no MindSpore."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.models.config import TINY
from tests.data.data_sets import name, write_folder, write_parquet, write_tar
from tests.project import copy_project
from tests.weights.synthetic import write_checkpoint

ENCODER = """
        import numpy as np
        return lambda pixels: np.zeros((len(pixels), 8, *(side // 8 for side in pixels.shape[2:])), np.float32)
"""


def bmp(shade: int) -> bytes:
    """All are of one size."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 9, 9)).save(stream, "BMP")
    return stream.getvalue()


def write(form: str, data: Path, shades: list[int]) -> list[Path]:
    """A data set of these pictures; the files that hold them."""
    pictures = [bmp(shade) for shade in shades]
    if form in ("folder", "links"):
        files = {f"{number}.bmp": picture for number, picture in enumerate(pictures)}
        write_folder(data.parent / "blobs" if form == "links" else data, files)
        data.mkdir(exist_ok=True)
        for file in files if form == "links" and not list(data.iterdir()) else ():
            (data / file).symlink_to(f"../blobs/{file}")
        return [data / file for file in files]
    if form == "tar":
        return [write_tar(data / "a.tar", {f"{number}.bmp": picture for number, picture in enumerate(pictures)})]
    return [write_parquet(data / "a.parquet", {"image": pictures, "text": ["x"] * len(pictures)})]


def dvc(root: Path, *words: str) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "PIPELINE_STORE")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    copy_project(root)
    (root / "data/base").mkdir()
    write_checkpoint(root / "data/base/tiny_sdxl.safetensors", TINY, seed=0, dtype="float16")
    stage = root / "stages/cache_latents.py"
    text, count = re.subn(r"(def make_encoder\(\):\n)(?:        .*\n|\n)+", rf"\1{ENCODER}\n", stage.read_text())
    assert count == 1
    stage.write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


@pytest.mark.parametrize("form", ["links", "tar"])  # "folder" and "parquet" as well, but a minute of DVC says no more
def test_the_advice_leads_out(project, form):
    data = project / "data" / form
    data.parent.mkdir(exist_ok=True)
    shades = [10, 20, 30, 40]
    past = 1_600_000_000
    for file in write(form, data, shades):
        os.utime(file, (past, past))
    params = project / "params.yaml"
    text = re.sub(r"(?m)^  images: \S+", f"  images: data/{form}", params.read_text())
    params.write_text(text.replace("interpolation: bicubic", "interpolation: lanczos"))
    done = dvc(project, "repro", "cache_latents")
    assert done.returncode == 0, done.stdout + done.stderr

    shades[2] = 200
    for file in write(form, data, shades):  # the file is written over, not exchanged
        os.utime(file, (past, past))
    params.write_text(params.read_text().replace("interpolation: lanczos", "interpolation: bicubic"))  # reads them all
    done = dvc(project, "repro", "cache_latents")
    assert "Stage 'index' didn't change" in done.stdout  # DVC saw nothing
    (advice,) = re.findall(r"`(touch [^`]+)`, then `dvc repro`", done.stderr)
    subprocess.run(advice, shell=True, cwd=project, check=True)
    done = dvc(project, "repro", "cache_latents")
    assert done.returncode == 0, done.stdout + done.stderr
    images = pq.read_table(project / "outs/index/images.parquet")["image"].to_pylist()
    assert sorted(images) == sorted(name(bmp(shade)) for shade in shades)
