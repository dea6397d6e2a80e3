"""The walk through whole and damaged tars."""

import io
import tarfile

import pytest

from pipeline.data import tar
from tests.data.data_sets import write_tar

FILES = {f"{n:02}.{end}": bytes([n + 1]) * size for n in range(10) for end, size in (("jpg", 1300), ("txt", 40))}
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.fixture
def whole(tmp_path):
    """The bytes of a tar of FILES, and the first byte of each member."""
    file = write_tar(tmp_path / "whole.tar", FILES)
    with tarfile.open(file) as archive:
        return file.read_bytes(), {member.name: member.offset for member in archive}


def walk(tmp_path, data: bytes) -> tuple[tar.Contents, dict[str, bytes]]:
    (tmp_path / "a.tar").write_bytes(data)
    found = tar.contents(str(tmp_path / "a.tar"))
    return found, {member.name: data[member.data : member.data + member.size] for member in found.members}


@pytest.mark.parametrize("form", FORMATS)
def test_every_member_as_tarfile_has_it(tmp_path, form):
    names = ["a.jpg", "d" * 90 + "/" + "e" * 90 + ".jpg", "f" * 100, "é.txt", "empty.txt"]
    if form != tarfile.USTAR_FORMAT:
        names += ["g" * 300 + ".jpg", "é" * 120 + ".txt"]
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = 0 if name == "empty.txt" else 700 * number + 1
            member.mtime = 1.5  # in pax a record of its own
            archive.addfile(member, io.BytesIO(bytes([number]) * member.size))
    found = tar.contents(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        wanted = [(member.name, member.offset, member.offset_data, member.size, None) for member in archive]
    assert [tuple(member) for member in found.members] == wanted
    assert found.ended and not found.damages and not found.joined


def test_a_flipped_bit_in_any_header(tmp_path, whole):
    data, offsets = whole
    for name, start in offsets.items():
        for byte in range(0, 512, 37):
            flipped = bytearray(data)
            flipped[start + byte] ^= 4
            found, files = walk(tmp_path, bytes(flipped))
            if byte >= 500:  # padding behind the last field, which the checksum covers all the same
                assert found.damages
            assert files == {key: value for key, value in FILES.items() if key != name}
            ((first, end, reason, cut),) = found.damages
            assert (first, cut) == (start, False) and end in (*offsets.values(), len(data))
            assert "no header that can be read" in reason


def test_a_cut_at_every_place(tmp_path, whole):
    data, offsets = whole
    ends = {name: start + 512 + len(FILES[name]) for name, start in offsets.items()}
    for length in range(1, max(ends.values()), 97):
        found, files = walk(tmp_path, data[:length])
        assert files == {name: FILES[name] for name in FILES if ends[name] <= length}
        at_border = not any(start < length < ends[name] for name, start in offsets.items())
        assert not found.ended and bool(found.damages) != at_border
        assert all(damage.cut and damage.end == length for damage in found.damages)


def test_a_hole_of_zeros(tmp_path, whole):
    """As in a file that was given its space before the download that was broken off."""
    data, offsets = whole
    starts = list(offsets.values())
    for first, last in ((3, 4), (3, 7), (4, 5), (0, 1), (0, 9)):  # from header to header
        found, files = walk(
            tmp_path, data[: starts[first]] + bytes(starts[last] - starts[first]) + data[starts[last] :]
        )
        assert files == dict(list(FILES.items())[:first] + list(FILES.items())[last:])
        assert found.damages == [(starts[first], starts[last], "zeros in the place of a header", False)]
    between = 0
    for first in range(1, 19, 2):  # two blocks, a caption: as many as end a tar
        start = starts[first]
        found, files = walk(tmp_path, data[:start] + bytes(1024) + data[start + 1024 :])
        assert len(files) == len(FILES) - 1 and list(FILES)[first] not in files
        at_record = (start + 1024) % 10240 == 0  # where a tar may end
        assert [damage[:2] for damage in found.damages] == ([] if at_record else [(start, start + 1024)])
        assert found.joined == ([start + 1024] if at_record else [])
        between += not at_record
    assert between >= 7
    for first, last in ((700, 9000), (2100, 2700), (513, 514), (5000, 14_000)):
        hole = data[:first] + bytes(last - first) + data[last:]
        found, files = walk(tmp_path, hole)
        lost = {name for name, start in offsets.items() if start < last and start + 512 > first}
        assert set(files) == set(FILES) - lost and bool(found.damages) == bool(lost)
    found, files = walk(tmp_path, data[:6000] + bytes(100_000))
    assert [(damage.end, damage.cut) for damage in found.damages] == [(106_000, False)]
    assert "more than an end mark" in found.damages[0].reason


def test_a_lone_zero_block_and_bytes_that_are_too_many_or_too_few(tmp_path, whole):
    data, offsets = whole
    start = offsets["04.jpg"]
    found, files = walk(tmp_path, data[:start] + bytes(512) + data[start:])
    assert files == FILES and found.damages == [(start, start + 512, "zeros in the place of a header", False)]
    found, files = walk(tmp_path, data[:start] + b"some bytes" + data[start:])
    assert files == FILES and [damage[:2] for damage in found.damages] == [(start, start + 10)]
    before = offsets["03.jpg"]
    found, files = walk(tmp_path, data[: start - 700] + data[start:])  # in 03.txt, and 188 bytes of its header
    assert files == {name: value for name, value in FILES.items() if name != "03.txt"} and found.damages
    found, files = walk(tmp_path, data[: before + 600] + data[before + 1100 :])  # in the data of 03.jpg
    assert files == {name: value for name, value in FILES.items() if name != "03.jpg"}
    assert found.damages == [(before, before + 2048 - 500, "bytes of 03.jpg are missing", False)]
    # In the name field of 04.jpg: with five zeros from before it the checksum is right, and the name is empty.
    found, files = walk(tmp_path, data[: start + 48] + data[start + 53 :])
    assert files == {name: value for name, value in FILES.items() if name != "04.jpg"}


def test_bytes_behind_the_end(tmp_path, whole):
    data, _ = whole
    for more, damages in ((b"x" * 100, []), (b"x" * 600, [(len(data), len(data) + 600)])):
        found, files = walk(tmp_path, data + more)
        assert files == FILES and found.ended and [damage[:2] for damage in found.damages] == damages
        assert found.behind == (0 if damages else 100)


def test_tars_put_together(tmp_path, whole):
    data, _ = whole
    other = write_tar(tmp_path / "other.tar", {"x.jpg": b"x"}).read_bytes()
    short = other[: len(other.rstrip(b"\0")) // 512 * 512 + 512 + 1024]  # with two zero blocks and no more
    for first in (other, short):
        found, files = walk(tmp_path, first + data + other)
        assert files == FILES | {"x.jpg": b"x"} and not found.damages
        assert found.joined == [len(first), len(first) + len(data)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_whose_long_name_is_damaged_is_lost(tmp_path, form):
    """What its own header has of the name is another name."""
    names = ["before.jpg", "x" * 100 + "/y.jpg", "é" * 60 + ".jpg", "behind.jpg"]
    with tarfile.open(tmp_path / "whole.tar", "w", format=form) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    data = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        offsets = {member.name: member.offset for member in archive}
    for name in names[1:3]:
        for byte in (0, 120, 150, 156):
            flipped = bytearray(data)
            flipped[offsets[name] + byte] ^= 1
            found, files = walk(tmp_path, bytes(flipped))
            assert list(files) == [other for other in names if other != name] and len(found.damages) == 1
        if form == tarfile.PAX_FORMAT:
            flipped = bytearray(data)
            flipped[offsets[name] + 512] ^= 0x40  # the records' length
            found, files = walk(tmp_path, bytes(flipped))
            assert list(files) == [other for other in names if other != name] and len(found.damages) == 1


def test_sizes_that_disagree(tmp_path):
    with tarfile.open(tmp_path / "whole.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, size in (("a.jpg", "1000"), ("b.jpg", "1500")):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 1000, {"size": size}
            archive.addfile(member, io.BytesIO(bytes(1000)))
    found, files = walk(tmp_path, (tmp_path / "whole.tar").read_bytes())
    assert list(files) == ["a.jpg"] and "two sizes, 1500" in found.damages[0].reason


def test_sizes_above_8_gib(tmp_path):
    """Which stand in base 256 in GNU's header, in a record in pax."""
    size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        member = tarfile.TarInfo("a.jpg")
        member.size = size
        with open(tmp_path / "a.tar", "wb") as file:
            header = member.tobuf(form)
            file.write(header)
            file.truncate(len(header) + size)  # the file has a hole, so it takes no space
            file.seek(0, 2)
            file.write(bytes(10240))
        found = tar.contents(str(tmp_path / "a.tar"))
        assert [(m.name, m.size) for m in found.members] == [("a.jpg", size)] and found.ended and not found.damages


def test_what_is_no_tar(tmp_path):
    for data in (b"x", b"x" * 5000, bytes(range(256)) * 100):
        found, files = walk(tmp_path, data)
        assert not files and [damage[:2] for damage in found.damages] == [(0, len(data))]
    for data in (b"", bytes(1024), bytes(10240)):
        found, files = walk(tmp_path, data)
        assert not files and not found.damages
