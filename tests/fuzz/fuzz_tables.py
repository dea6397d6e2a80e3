"""Captions and tables damaged at random: metadata.jsonl and .csv, caption files, Parquet. A message may come, never a
traceback."""

import io
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import captions
from pipeline.data.captions import CaptionError
from pipeline.data.part import SourceError
from pipeline.data.sources import open_source
from tests.fuzz.cases import try_cases

ODD = [
    "",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\u2028",
    "\x0b",
    "\x85",
    "\0",
    '"',
    "'",
    ",",
    "\\",
    "é",
    "🐈",
    "\ufeff",
    "a cat",
    "[",
    "{",
]


def fuzz(seconds: float, seed: int) -> int:
    """Try cases until the time is up; returns how many. Raises AssertionError, naming the case, on a defect."""
    return try_cases(check, seconds, seed)


def check(folder: Path, seed: int, number: int) -> None:
    """One case."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(("metadata.jsonl", "metadata.csv", "a.txt", "a.json", "a.parquet"))
    data = damage(draw, MAKERS[kind](draw))
    place = folder / kind.partition(".")[2]
    place.mkdir(exist_ok=True)
    (place / kind).write_bytes(data)
    (place / "a.png").write_bytes(b"not looked at") if kind != "a.parquet" else None
    try:
        if kind == "a.json":
            for part in open_source(str(place)).parts():  # a picture is lost whose focus cannot be read
                assert len(part.focus) == len(part.paths) and len(part.paths) + len(part.lost) == 1
            captions.record(data, "a.json")
        else:
            source = open_source(str(place), draw.choice(("several", "one")))
            for part in source.parts():
                assert part.texts.null_count == 0
                if kind == "a.parquet":
                    for path in part.paths.to_pylist():
                        assert isinstance(source.read(path), bytes)
                else:
                    # lost where its caption cannot be read
                    assert "a.png" in [*part.paths.to_pylist(), *(lost.path for lost in part.lost)]
    except (SourceError, CaptionError) as error:
        str(error).encode("utf-8", "backslashreplace")
    except Exception as error:
        raise AssertionError(f"seed {seed}, case {number}, {kind}: {error!r}; bytes {data[:2000]!r}") from error


def text(draw: random.Random) -> str:
    return "".join(draw.choice(ODD) for _ in range(draw.randrange(6)))


def value(draw: random.Random) -> object:
    """A caption, or something in its place."""
    odd = (None, 7, 1.5, True, [], {}, [text(draw), text(draw)], [None], {"a": [1]}, "\ud83d", float("nan"))
    return draw.choice(odd) if draw.random() < 0.3 else text(draw)


def beside(draw: random.Random) -> dict:
    """What else a row may say."""
    found = {}
    for name in ("focus", "bbox", "repeats"):
        if draw.random() < 0.2:
            number = draw.choice((0, 1, 0.5, -1, 300, 1e300, None, "x", True, float("nan")))
            box = [number if draw.random() < 0.2 else draw.random() / 2 for _ in range(draw.choice((2, 4, 3)))]
            found[name] = draw.choice((box, [box, box], str(box), ",".join(map(str, box)), number, {}, text(draw)))
    return found


def jsonl(draw: random.Random) -> bytes:
    rows = []
    for _ in range(draw.randrange(1, 5)):
        row = {
            "file_name": draw.choice(("a.png", "A.PNG", "./a.png", "b.png", "x/../a.png", "", text(draw))),
            "text": value(draw),
        }
        if draw.random() < 0.3:
            row["text_2"] = value(draw)
        row |= beside(draw)
        rows.append(json.dumps(row, ensure_ascii=draw.random() < 0.5) + draw.choice(("\n", "\r\n", "\r", "\n\n")))
    return "".join(rows).encode("utf-8", "surrogatepass")


def csv(draw: random.Random) -> bytes:
    lines = [
        draw.choice(
            (
                "file_name,text",
                "file_name,text,text_2",
                "file_name,text,focus",
                "file_name,text,bbox",
                "text",
                "file_name,file_name,text",
                "",
            )
        )
    ]
    for _ in range(draw.randrange(4)):
        cells = ["a.png", text(draw), text(draw)][: draw.randrange(1, 4)]
        lines.append(",".join(draw.choice((cell, '"' + cell.replace('"', '""') + '"')) for cell in cells))
    return draw.choice(("\n", "\r\n", "\r")).join(lines).encode()


def caption_file(draw: random.Random) -> bytes:
    return text(draw).encode(draw.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le")))


def record(draw: random.Random) -> bytes:
    return json.dumps({"text": value(draw), "caption": value(draw), "text_2": value(draw)} | beside(draw)).encode()


def parquet(draw: random.Random) -> bytes:
    count = draw.randrange(1, 6)
    pictures = [draw.choice((None, draw.randbytes(20), b"")) for _ in range(count)]
    images = draw.choice(
        (
            pa.array(pictures, draw.choice((pa.binary(), pa.large_binary(), pa.binary_view()))),
            pa.array([{"bytes": data, "path": "x"} for data in pictures]),
            pa.array(["a"] * count),
        )
    )
    texts = pa.array(
        [text(draw) for _ in range(count)], draw.choice((pa.string(), pa.large_string(), pa.string_view()))
    )
    lists = pa.array([[text(draw)] * draw.randrange(3) for _ in range(count)])
    columns = {"image": images, "text": draw.choice((texts, lists, pa.array(range(count))))}
    if draw.random() < 0.3:
        columns["text_2"] = texts
    if draw.random() < 0.3:
        name, number = draw.choice(("focus", "bbox")), draw.choice((0.5, 1, -1, 300, float("nan")))
        boxes = [draw.choice((None, [], [number], [0.1, 0.2], [0.1, 0.1, 0.3, number])) for _ in range(count)]
        columns[name] = draw.choice((pa.array(boxes, pa.list_(pa.float64())), texts, pa.array([{"x": 1}] * count)))
    stream = io.BytesIO()
    form = {"compression": draw.choice(("none", "snappy", "zstd")), "use_dictionary": draw.random() < 0.5}
    pq.write_table(pa.table(columns), stream, row_group_size=2, **form)
    return stream.getvalue()


MAKERS = {
    "metadata.jsonl": jsonl,
    "metadata.csv": csv,
    "a.txt": caption_file,
    "a.json": record,
    "a.parquet": parquet,
}


def damage(draw: random.Random, data: bytes) -> bytes:
    for _ in range(draw.choice((0, 0, 1, 1, 3))):
        if not data:
            break
        start = draw.randrange(len(data))
        end = start + draw.choice((1, 4, 40))
        data = draw.choice(
            (
                data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :],
                data[:start],
                data[:start] + draw.randbytes(len(data[start:end])) + data[end:],
                data[:start] + data[end:],
                data[:start] + data[start:end] * draw.choice((2, 50)) + data[end:],
            )
        )
    return data


if __name__ == "__main__":
    print(fuzz(float(os.environ.get("FUZZ_SECONDS", "60")), int(os.environ.get("FUZZ_SEED", "0"))))
