"""Files written past the page cache hold the bytes that were given, whatever the sizes; errors arrive."""

import errno
import os

import numpy as np
import pytest

from pipeline.weights import direct
from pipeline.weights.direct import DirectFile

SIZES = [0, 1, 4095, 4096, 4097, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (12 << 20) + 7]


def write(path, parts):
    file = DirectFile(path)
    for part in parts:
        buffer = bytearray(part)
        file.write(memoryview(buffer))
        buffer[:] = bytes(len(buffer))  # the caller may use it again
    file.close()


@pytest.mark.parametrize("size", SIZES)
def test_bytes_arrive(tmp_path, size):
    data = np.random.default_rng(size).bytes(size)
    write(tmp_path / "one", [data])
    assert (tmp_path / "one").read_bytes() == data
    write(tmp_path / "one", [data[start : start + 999_983] for start in range(0, size, 999_983)])
    assert (tmp_path / "one").read_bytes() == data


def test_whole_blocks_are_written_past_the_cache(tmp_path, monkeypatch):
    flags = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flag, mode=0o777: flags.append(flag) or opened(path, flag, mode))
    write(tmp_path / "x", [b"x" * (5 << 20)])
    assert flags[0] & os.O_DIRECT


def test_a_file_system_without_direct_writes(tmp_path, monkeypatch):
    opened = os.open

    def open_(path, flags, mode=0o777):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return opened(path, flags, mode)

    monkeypatch.setattr(direct.os, "open", open_)
    data = np.random.default_rng(0).bytes((8 << 20) + 5)
    write(tmp_path / "x", [data])
    assert (tmp_path / "x").read_bytes() == data


def test_a_missing_folder_and_a_full_disk_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "none/x")
    file = DirectFile("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        for _ in range(3):
            file.write(memoryview(bytes(4 << 20)))
    with pytest.raises(OSError, match="No space left"):
        file.close()
