"""What a weight file is, by its first bytes; and the file names of a diffusers folder."""

import gzip
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.stage import StageError
from pipeline.weights import ckpt
from pipeline.weights.files import read_file, read_folder

FOLDER = Path(__file__).parents[1] / "golden" / "diffusers_folder"
ONES = np.ones(3, np.float32)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.bin", "x"])
def test_the_first_bytes_decide_not_the_name(tmp_path, name):
    path = tmp_path / name
    safetensors.numpy.save_file({"a": ONES}, path)
    assert list(read_file(path)) == ["a"]
    with ckpt.Writer(path) as writer:
        writer.add("b", ONES)
    assert list(read_file(path)) == ["b"]


def test_a_header_whose_length_begins_as_a_ckpt_does(tmp_path):
    """Its length's lowest byte is 0x0a, protobuf's key of the first field."""
    text = b'{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
    text += b" " * (-(len(text) - 0x0A) % 0x100)
    raw = len(text).to_bytes(8, "little") + text + bytes(2)
    assert raw[0] == 0x0A
    (tmp_path / "x").write_bytes(raw)
    assert list(read_file(tmp_path / "x")) == ["a"]


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.pt", "x.pth", "x.bin"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5, "zip"])
def test_pickled_weights_are_refused_with_the_way_out(tmp_path, name, protocol):
    path = tmp_path / name
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(StageError) as error:
        read_file(path)
    message = str(error.value)
    assert f"{path} holds pickled PyTorch weights, which can run any code when opened, so it is not read" in message
    assert "Wanted a safetensors file or a MindSpore .ckpt" in message and "safetensors.torch.save_file" in message


def state_dict(kind):
    values = [(f"model.diffusion_model.input_blocks.{i}.0.weight", [0.5, i]) for i in range(20)]
    return {"dict": dict(values), "list": values, "tuple": tuple(values), "ordered": OrderedDict(values),
            "empty": {}, "torch": 0x1950A86A20F9469CFC6C, "class": Bomb()}[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["dict", "list", "tuple", "ordered", "empty", "torch", "class"])
@pytest.mark.parametrize("protocol", [0, 1])
def test_pickles_without_a_mark(tmp_path, kind, protocol):
    path = tmp_path / "x.ckpt"
    path.write_bytes(raw := pickle.dumps(state_dict(kind), protocol=protocol))
    assert raw[0] != 0x80
    with pytest.raises(StageError, match=r"holds pickled PyTorch weights, .*safetensors.torch.save_file"):
        read_file(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"(see the readme for where the weights of this model are to be had, in full.",
        b"cat on a mat.",
        b"}",
        b"[1, 2].",
        b"Lorem ipsum dolor sit amet.",
        pickle.dumps({"a": list(range(100))}, protocol=0)[:-1],  # cut off: not told by its last byte
    ],
)
def test_texts_are_not_taken_for_pickles(tmp_path, raw):
    (tmp_path / "x.ckpt").write_bytes(raw)
    with pytest.raises(StageError, match=r"begins with b.*\. Wanted a safetensors file"):
        read_file(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"GGUF\3\0\0\0" + bytes(50), "quantised for inference .GGUF."),
        (b"\xd8^:\x7f" + bytes(50), "encrypted MindSpore checkpoint"),
        (b"\x89HDF\r\n" + bytes(50), "HDF5"),
        (gzip.compress(bytes(50), mtime=0), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "as a web page does.*download it again"),
        (b"hello, this is text", "begins with b'hello, t'"),
        (b"\x0a\x05hello", "not a MindSpore checkpoint"),
    ],
)
def test_other_files_are_named(tmp_path, raw, message):
    (tmp_path / "x.ckpt").write_bytes(raw)
    with pytest.raises(StageError, match=message) as error:
        read_file(tmp_path / "x.ckpt")
    assert str(tmp_path / "x.ckpt") in str(error.value)


# Folders


def folder_of(tmp_path, *names):
    for name in names:
        safetensors.numpy.save_file({name: ONES}, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.bf16.safetensors"], "model.bf16.safetensors"),
        (["diffusion_pytorch_model.non_ema.safetensors"], "diffusion_pytorch_model.non_ema.safetensors"),
        (["model.non_ema.safetensors", "model.safetensors"], "model.safetensors"),
        (["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"], "model.fp16.safetensors"),
    ],
)
def test_variants(tmp_path, names, taken):
    assert list(read_folder(folder_of(tmp_path, *names))) == [taken]


def test_a_shard_without_its_index_is_not_taken_for_the_whole(tmp_path):
    folder_of(tmp_path, "model.fp16-00001-of-00002.safetensors", "model-00001-of-00002.safetensors")
    with pytest.raises(StageError, match="has model-00001-of-00002.safetensors, .*; wanted"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.bf16.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.bf16.json"],
)
def test_indices_of_any_variant(tmp_path, name):
    unet = Path(shutil.copytree(FOLDER / "unet", tmp_path / "unet"))
    before = read_folder(unet)
    (unet / "diffusion_pytorch_model.safetensors.index.json").rename(unet / name)
    assert read_folder(unet).keys() == before.keys()


def test_a_folder_of_single_files_says_that_one_is_to_be_named(tmp_path):
    with pytest.raises(StageError, match=r"unet does not exist .for a single file give its own path: a.safetensors"):
        read_folder(folder_of(tmp_path, "b.safetensors", "a.safetensors") / "unet")


def test_the_hubs_links_are_followed(tmp_path):
    """A hub snapshot's files are links to ../../blobs/."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots/1/vae").mkdir(parents=True)
    safetensors.numpy.save_file({"a": ONES}, tmp_path / "blobs/0f")
    (tmp_path / "snapshots/1/vae/diffusion_pytorch_model.safetensors").symlink_to("../../../blobs/0f")
    assert list(read_folder(tmp_path / "snapshots/1/vae")) == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"weight_map": {"a": "..", "b": "."}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "x\\u0000.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "' + "a" * 5000 + '"}}',
        '{"weight_map": []}',
        "\ud800",
        "null",
    ],
)
def test_unsound_indices_are_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, errors="surrogatepass")
    with pytest.raises(StageError, match="is not an index"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "a-00001-of-00002.safetensors",
            r"is one of 2 shards, whose index, \*.safetensors.index.json, is not beside it",
        ),
        ("a.safetensors.index.json", "is the index of sharded weights"),
        ("a.safetensors.index.fp16.json", "is the index of sharded weights"),
        ("unet/diffusion_pytorch_model-00002-of-00002.safetensors", "is one of 2 shards"),
    ],
)
def test_a_part_of_sharded_weights_names_the_folder_to_give(tmp_path, name, said):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    safetensors.numpy.save_file({"a": ONES}, path)
    with pytest.raises(StageError, match=f"{said}.*; give the folder, {tmp_path}, which DVC then watches"):
        read_file(path)


def test_the_only_shard_is_a_file(tmp_path):
    safetensors.numpy.save_file({"a": ONES}, tmp_path / "a-00001-of-00001.safetensors")
    assert list(read_file(tmp_path / "a-00001-of-00001.safetensors")) == ["a"]
