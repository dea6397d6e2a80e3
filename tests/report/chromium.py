"""A headless Chromium for the tests of pages. `python -m tests.report.chromium` gets one ready and says which.

$CHROMIUM or an installed one is taken as it is. Elsewhere, on Linux on x86-64, npm brings the one of
@sparticuz/chromium, which needs neither root nor the system's libraries; it is put beside the environment's packages.
Where neither is to be had, `find` says why, and the test that asks for it is skipped with that."""

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

INSTALLED = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
PACKAGE, VERSION = "@sparticuz/chromium", "153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FOLDER = Path(sys.prefix) / f"chromium-{VERSION}"
# The package's own names folders of AWS Lambda's, and a browser that finds no font draws no text.
FONTS = f"""<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{FOLDER}/fonts/fonts</dir>
  <cachedir>{FOLDER}/fonts/cache</cachedir>
</fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    path: Path
    environment: dict[str, str] = field(default_factory=dict)


def find() -> Chromium:
    """Raises LookupError, which says why there is none."""
    chosen = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else INSTALLED
    for name in chosen:
        if path := shutil.which(name):
            return Chromium(Path(path))
    if os.environ.get("CHROMIUM"):
        raise LookupError(f"CHROMIUM is {os.environ['CHROMIUM']}, which cannot be started")
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise LookupError(
            f"no Chromium is installed, and {PACKAGE} has none for {sys.platform} on {platform.machine()}"
        )
    if not FOLDER.exists():
        _fetch()
    fonts = FOLDER / "fonts-here.conf"
    if not fonts.exists() or fonts.read_text() != FONTS:  # the environment may have been moved
        part = fonts.with_suffix(f".{os.getpid()}")
        part.write_text(FONTS)
        part.replace(fonts)
    libraries = [str(FOLDER / "al2023/lib"), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "FONTCONFIG_FILE": str(fonts)}
    return Chromium(FOLDER / "chromium", environment)


def _fetch() -> None:
    """Make FOLDER, whole or not at all."""
    npm = shutil.which("npm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if npm is None:
        raise LookupError("no Chromium is installed, and there is no npm to fetch one")
    part = FOLDER.with_name(f"{FOLDER.name}.{os.getpid()}")
    part.mkdir()
    try:
        words = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", str(part), "--ignore-scripts"]
        done = subprocess.run(words, cwd=part, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise LookupError(f"no Chromium is installed, and npm cannot fetch one: {done.stderr.strip()[-300:]}")
        (tarball,) = part.glob("*.tgz")
        if hashlib.sha256(tarball.read_bytes()).hexdigest() != SHA256:
            raise LookupError(f"{PACKAGE} {VERSION} is not the one that the tests know; its hash differs")
        with tarfile.open(tarball) as archive:
            archive.extractall(part)  # known by its hash; Debian's Python 3.11.2 has no filters
        _unpack(part / "package/bin", part)
        shutil.rmtree(part / "package")
        tarball.unlink()
        part.rename(FOLDER)
    except subprocess.TimeoutExpired:
        raise LookupError("no Chromium is installed, and npm did not fetch one in ten minutes") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpack(packed: Path, out: Path) -> None:
    with (
        pa.input_stream(packed / "chromium.br", compression="brotli") as source,
        open(out / "chromium", "wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    (out / "chromium").chmod(0o755)
    for name in ("al2023", "fonts"):
        with pa.input_stream(packed / f"{name}.tar.br", compression="brotli") as source:
            with tarfile.open(fileobj=io.BytesIO(source.read())) as archive:
                archive.extractall(out / name)


if __name__ == "__main__":
    try:
        print(f"headless Chromium: {find().path}")
    except LookupError as error:
        print(f"the test that opens the report in a browser will be skipped: {error}")
