import math
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import captions, tables
from tests.data.data_sets import rows

SETTINGS = {"name": "", "repeats": 2.0, "loss_weight": 0.5, "caption_dropout": None, "class_images": True}


def plain_captions(images: list[dict], given: list[tuple]) -> list[tuple]:
    """What write_captions does, in plain Python."""
    used = {row["image"] for row in images if row["rejected"] is None}
    found = set(given) | {(image, "", None) for image in used - {row[0] for row in given}}
    return sorted((image, captions.name(text, text_2), text, text_2 or "") for image, text, text_2 in found)


@pytest.mark.parametrize("count", [1, 37, 3000])
def test_tables_against_plain_python(tmp_path, monkeypatch, count):
    monkeypatch.setattr(tables, "_ROW_GROUP", 128)
    generator = np.random.default_rng(count)
    hashes = [generator.bytes(16) for _ in range(max(1, count // 2))]
    bad = {image for image in hashes if generator.random() < 0.2}
    images, given = [], []
    for number in range(count):
        image = hashes[generator.integers(len(hashes))]
        size = None if image in bad else 64
        images.append(
            dict(
                zip(
                    tables.IMAGES.names,
                    (image, f"{number:05}.png", 100, 100, size, size, "broken" if image in bad else None, number << 50)
                    + (None, None, None),
                )
            )
        )
        if image not in bad:
            for _ in range(generator.integers(0, 4)):
                given.append((image, f"caption {generator.integers(5)}", [None, "second"][generator.integers(2)]))
    times = {row["path"]: float(generator.choice([0.1, 1, 3])) for row in images}
    outs = []
    for order in (1, -1):
        folder = tmp_path / f"run {order}"
        folder.mkdir()
        schemas = tables.IMAGES, tables.MEMBERS, tables.TEXTS
        image_rows, member_rows, text_rows = (tables.Rows(schema) for schema in schemas)
        step = 100 if order == 1 else 7
        for start in range(0, count, step):
            image_rows.add(pa.Table.from_pylist(images[::order][start : start + step], schema=tables.IMAGES))
        for start in range(0, len(given), step):
            columns = [
                {"image": image, "set": 0, "text": text, "text_2": second, "chance": 1.0}
                for image, text, second in given[::order][start : start + step]
            ]
            text_rows.add(pa.Table.from_pylist(columns, schema=tables.TEXTS))
        members = [
            {"image": row["image"], "set": 0, "path": row["path"], "times": times[row["path"]]}
            for row in images[::order]
            if row["rejected"] is None
        ]
        for start in range(0, len(members), step):
            member_rows.add(pa.Table.from_pylist(members[start : start + step], schema=tables.MEMBERS))
        copies = tables.write_images(image_rows, folder / "images.parquet")
        written = tables.write_captions(
            member_rows, text_rows, folder / "captions.parquet", folder / "samples.parquet", [SETTINGS]
        )
        outs.append([(folder / f"{name}.parquet").read_bytes() for name in ("images", "captions", "samples")])
    assert outs[0] == outs[1]
    assert rows(folder / "images.parquet") == sorted(images, key=lambda row: (row["image"], row["path"]))
    found = [
        (row["image"], row["caption"], row["text"], row["text_2"] or "") for row in rows(folder / "captions.parquet")
    ]
    assert found == plain_captions(images, given)
    bare = {image for image, _, text, _ in found if text == ""}
    assert written.empty == len(bare) and written.given == len(found) - written.empty
    assert sorted(pa.chunked_array(written.bare).to_pylist()) == sorted(
        row["path"] for row in images if row["image"] in bare and row["rejected"] is None
    )
    used = defaultdict(list)
    for row in images:
        if row["rejected"] is None:
            used[row["image"]].append(row["path"])
    assert {row["path"]: row["copy_of"] for row in copies.to_pylist()} == {
        path: min(paths) for paths in used.values() for path in paths if path != min(paths)
    }
    samples = rows(folder / "samples.parquet")
    assert [(row["image"], row["caption"]) for row in samples] == [(row[0], row[1]) for row in found]
    repeats = {image: 2 * math.fsum(times[path] for path in paths) for image, paths in used.items()}
    assert {row["image"]: row["repeats"] for row in samples} == pytest.approx(repeats)
    assert written.samples == len(used) and written.often == pytest.approx(math.fsum(repeats.values()))
    assert {(row["set"], row["loss_weight"], row["caption_dropout"], row["class_images"]) for row in samples} <= {
        (0, 0.5, None, True)
    }
    groups = pq.ParquetFile(folder / "images.parquet").metadata
    assert [groups.row_group(g).num_rows for g in range(groups.num_row_groups)][:-1] == [128] * ((count - 1) // 128)
