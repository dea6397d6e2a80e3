"""Data sets for the tests of data that lie far away, and what puts and indexes them."""

import tempfile
from pathlib import Path

from pipeline.data import far
from pipeline.data.buckets import buckets
from pipeline.data.index import index
from pipeline.data.sources import open_source
from pipeline.data.summary import Summary
from tests.data.data_sets import picture, write_tar

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-bPxRfiCYEXAMPLEKEY"
PICTURES = {f"{n:02}": picture(n, 70, 60) for n in range(8)}


def forget() -> None:
    """The file systems that were opened, which know the address of their server."""
    from s3fs import S3FileSystem

    far._filesystem.cache_clear()
    S3FileSystem.clear_instance_cache()


def put(server: str, folder: Path, bucket: str) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1"
    )
    client.create_bucket(Bucket=bucket)  # or it is there
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        client.put_object(Bucket=bucket, Key=str(file.relative_to(folder.parent)), Body=file.read_bytes())


def tars(folder: Path, count: int = 2) -> Path:
    """`count` tars of eight pictures each, all different."""
    for number in range(count):
        files = {f"{name}.png": picture(100 * number + int(name), 70, 60) for name in PICTURES}
        write_tar(folder / f"{number}.tar", files | {f"{name}.txt": f"a picture {name}" for name in PICTURES})
    return folder


def alike(first: int, count: int = 2) -> dict[str, bytes]:
    """Tars of eight pictures each, all of the same sizes in bytes whatever their content."""
    found = {}
    for number in range(count):
        with tempfile.TemporaryDirectory() as folder:
            files = {f"{n}.bmp": picture(first + 8 * number + n, 70, 60, "BMP") for n in range(8)}
            found[f"set/{number}.tar"] = write_tar(Path(folder, "a.tar"), files).read_bytes()
    return found


def run(source: str, out: Path) -> Summary:
    return index(open_source(source), out, buckets(64, 32), 16, None, 10**6, 1.0, 1)
