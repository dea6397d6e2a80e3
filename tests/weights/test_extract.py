"""LoRAs out of whole fine-tunes."""

import json
import re
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from pipeline.models.config import TINY
from pipeline.stage import StageError
from pipeline.weights import ckpt, layout
from pipeline.weights import safetensors as streamed
from pipeline.weights.__main__ import main
from pipeline.weights.adapters import apply, extract, file, kinds
from pipeline.weights.names import PREFIX, to_mindspore
from tests.weights import synthetic

SHAPES = {name: shape for name, shape in layout.shapes(TINY).items() if name.startswith(PREFIX["unet"])}
PROJ = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
CONV = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


def write(path, change=lambda name, value: value):
    with ckpt.Writer(path) as writer:
        for name, shape in SHAPES.items():
            writer.add(to_mindspore(name), change(name, synthetic.values(name, shape).astype(np.float32)))
    return path


def of_rank(rank: int, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.default_rng(rank)
    up, down = draw.standard_normal((shape[0], rank)), draw.standard_normal((rank, int(np.prod(shape[1:]))))
    return (0.1 * up @ down).reshape(shape).astype(np.float32)


def run(rank, base, tuned, out, *options):
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--rank", str(rank), "--base", str(base), "--tuned", str(tuned), "--out", str(out), *options])
    assert ended.value.code == 0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_low_rank_is_that_of_the_singular_values(shape):
    matrix = np.random.default_rng(1).standard_normal(shape)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    up, down, squares = extract.low_rank(matrix, 5)
    np.testing.assert_allclose(squares, s**2, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(up @ down, u[:, :5] * s[:5] @ v[:5], atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1))


def test_a_rank_above_the_matrixs_own_adds_zeros():
    matrix = np.random.default_rng(1).standard_normal((6, 30))
    up, down, _ = extract.low_rank(matrix, 9)
    assert up.shape == (6, 9) and down.shape == (9, 30) and not down[6:].any()
    np.testing.assert_allclose(up @ down, matrix, atol=1e-10)


def test_a_low_rank_change_comes_back(tmp_path, capsys):
    """Of rank 3, in a linear layer and a convolution: by rank 4 exactly, by rank 2 as near as the table says."""
    changes = {PROJ: of_rank(3, SHAPES[PROJ]), CONV: of_rank(3, SHAPES[CONV])}
    base = write(tmp_path / "base.ckpt")
    tuned = write(tmp_path / "tuned.ckpt", lambda name, value: value + changes.get(name, 0))
    out = tmp_path / "lora.safetensors"
    for rank, error in ((4, 0.0), (2, None)):
        out.unlink(missing_ok=True)
        run(rank, base, tuned, out, "--dtype", "float32", "--targets", "!*.no_such_name")
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]
        said = {int(line[0]): float(line[1]) for line in lines}
        found = apply.apply(apply.base_unet(base, TINY), [(out, 1.0)], TINY, "float32")
        left = sum(np.square(found[name].array() - synthetic.values(name, SHAPES[name]) - change).sum()
                   for name, change in changes.items())  # fmt: skip
        relative = (left / sum(np.square(change).sum() for change in changes.values())) ** 0.5
        assert relative == pytest.approx(said[rank], abs=2e-3) and (error is None or relative < 1e-4)
        assert said[1] > said[2] > 0.01 and said[4] < 1e-3
    metadata = streamed.metadata(out)
    assert metadata["ss_network_dim"] == "2" and metadata["ss_sd_model_name"] == "base.ckpt"


def test_no_more_than_some_layers_are_in_memory(tmp_path):
    """Of two UNets of 26 MB each."""
    base = write(tmp_path / "base.ckpt")
    tuned = write(tmp_path / "tuned.ckpt", lambda name, value: value * 1.01)
    tracemalloc.start()
    try:
        extract.extract(base, tuned, TINY, 1, extract.TARGETS, "float32", tmp_path / "out.safetensors", {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = [4 * np.prod(shape) for shape in SHAPES.values()]
    assert peak < 8 * max(sizes) < sum(sizes) / 2  # a layer's in float64, and what its decomposition takes


def test_a_text_encoder_that_was_trained_is_named(tmp_path, capsys):
    base, tuned = write(tmp_path / "base.ckpt"), tmp_path / "tuned.ckpt"
    with ckpt.Writer(tuned) as writer:
        for name, shape in layout.shapes(TINY).items():
            if name.startswith((PREFIX["unet"], PREFIX["clip_l"])):
                change = of_rank(3, shape) if name == PROJ else 0
                writer.add(to_mindspore(name), synthetic.values(name, shape).astype(np.float32) + change)
    run(4, base, tuned, tmp_path / "lora.safetensors")
    assert f"of the UNet alone: what CLIP-L of {tuned} may have learned is not in it" in capsys.readouterr().out


def test_by_default_the_transformers_linear_layers(tmp_path, capsys, monkeypatch):
    """Of the UNet that the stages left and the base, into this folder. What other layers learned is left at any rank."""
    changes = {PROJ: of_rank(3, SHAPES[PROJ]), CONV: of_rank(3, SHAPES[CONV])}
    for folder in ("convert", "train/weights"):
        (tmp_path / "outs" / folder).mkdir(parents=True)
    write(tmp_path / "outs/convert/unet.ckpt")
    write(tmp_path / "outs/train/weights/unet.ckpt", lambda name, value: value + changes.get(name, 0))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--rank", "8"])
    assert ended.value.code == 0
    out = tmp_path / "lora-rank-8.safetensors"
    said = capsys.readouterr().out
    share = np.square(changes[PROJ]).sum() / sum(np.square(change).sum() for change in changes.values())
    assert f"{share:.1%} of the squared difference" in said
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    ((_, error, of_all, size, unit),) = [row for row in rows if row[0] == "8"]
    assert float(error) == pytest.approx(0, abs=2e-3) and unit == "MB"
    assert float(of_all) == pytest.approx((1 - share) ** 0.5, abs=2e-3)
    numbers = sum(value.size for value in safetensors.numpy.load_file(out).values())
    assert float(size) == pytest.approx(2 * numbers / 1e6, abs=0.06)
    found = file.read(out, TINY)
    assert CONV not in found and {len(SHAPES[name]) for name in found} == {2}
    assert {value.dtype for value in safetensors.numpy.load_file(out).values()} == {np.dtype(np.float16)}
    assert all(one.parts.keys() == {kinds.UP, kinds.DOWN} for own in found.values() for one in own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, value: value, "do not differ"),
        (lambda name, value: value * np.float32("nan"), "of .*tuned.ckpt holds .* no numbers"),
    ],
)
def test_what_is_refused(tmp_path, change, said):
    base, tuned = write(tmp_path / "base.ckpt"), write(tmp_path / "tuned.ckpt", change)
    with pytest.raises(StageError, match=said):
        extract.extract(base, tuned, TINY, 4, extract.TARGETS, "float32", tmp_path / "out.safetensors", {})
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("tuned.ckpt", "wanted a name that ends in .safetensors"),
        ("folder.safetensors", "is a folder"),
        ("other.safetensors", "other.safetensors exists.* --out"),
        ("none/out.safetensors", "there is no folder"),
        ("base.safetensors", "is .*base.safetensors, which would be lost"),
        ("link.safetensors", "is .*base.safetensors, which would be lost"),
    ],
)
def test_where_nothing_can_or_should_be_written(tmp_path, capsys, out, said):
    """It is said before any work."""
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "other.safetensors").touch()
    (tmp_path / "link.safetensors").symlink_to(base)
    tuned = write(tmp_path / "tuned.ckpt")
    with pytest.raises(SystemExit) as ended:
        main(["extract", "--rank", "4", "--base", str(base), "--tuned", str(tuned), "--out", str(tmp_path / out)])
    assert re.search(said, f"{ended.value.code} {capsys.readouterr().err}") and not base.read_bytes()


def test_a_pattern_that_names_no_weight(tmp_path):
    base = write(tmp_path / "base.ckpt")
    with pytest.raises(
        StageError,
        match=r"no weight of the UNet that can have a LoRA has a name like '\*\.attn9\.\*'; near it are \*attn[12]\*",
    ):
        extract.extract(base, base, TINY, 4, ("*", "*.attn9.*"), "float32", tmp_path / "out.safetensors", {})


def test_an_adapter_is_no_fine_tune(tmp_path, capsys):
    base, tuned = write(tmp_path / "base.ckpt"), tmp_path / "tuned.safetensors"
    safetensors.numpy.save_file({f"{file.layer_name(PROJ)}.lora_down.weight": np.ones((4, 64), np.float32)}, tuned)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "extract",
                "--rank",
                "4",
                "--base",
                str(base),
                "--tuned",
                str(tuned),
                "--out",
                str(tmp_path / "o.safetensors"),
            ]
        )
    assert re.search("tuned.safetensors is an adapter already", f"{ended.value.code} {capsys.readouterr().err}")


def test_a_rank_that_no_layer_has(tmp_path):
    base, tuned = write(tmp_path / "base.ckpt"), write(tmp_path / "tuned.ckpt", lambda name, value: value * 1.01)
    with pytest.raises(StageError, match="rank 1000 is more than any of these layers has; wanted 128 at most"):
        extract.extract(base, tuned, TINY, 1000, extract.TARGETS, "float32", tmp_path / "out.safetensors", {})


def test_layers_that_learned_nothing_have_no_lora(tmp_path):
    base, out = write(tmp_path / "base.ckpt"), tmp_path / "lora.safetensors"
    tuned = write(tmp_path / "tuned.ckpt", lambda name, value: value + (of_rank(3, value.shape) if name == PROJ else 0))
    run(4, base, tuned, out)
    assert list(file.read(out, TINY)) == [PROJ]


def test_what_is_extracted_in_a_workspace_is_known_there(tmp_path, capsys, monkeypatch):
    for folder in ("convert", "train/weights"):
        (tmp_path / "outs" / folder).mkdir(parents=True)
    write(tmp_path / "outs/convert/unet.ckpt")
    write(
        tmp_path / "outs/train/weights/unet.ckpt",
        lambda name, value: value + (of_rank(3, value.shape) if name == PROJ else 0),
    )
    origin = {"base": {"name": "my-base.safetensors", "file": True, "sha256": "b" * 64}, "vae": {}}
    (tmp_path / "outs/convert/sources.json").write_text(json.dumps(origin))
    monkeypatch.chdir(tmp_path)
    for command in (["extract", "--rank", "4"], ["show", "lora-rank-4.safetensors"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert not ended.value.code
    said = capsys.readouterr().out
    assert "of this workspace: yes" in said and "title: unet less my-base, rank 4" in said
    assert "sd_model_name: my-base.safetensors" in said
    write(tmp_path / "outs/train/weights/unet.ckpt")
    with pytest.raises(SystemExit):
        main(["show", "lora-rank-4.safetensors"])
    said = capsys.readouterr().out
    assert "of this workspace: no" in said and len(re.findall(" there, .* here", said)) == 1
