"""Which pins of requirements*.txt have no wheel for Linux on x86-64 or aarch64 and Python 3.11; the pins are all that is
installed, so that nothing is left to resolve.

    python -m benchmarks.wheels      # asks the package index, some minutes"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.recorded import PROJECT

FILES = ["requirements.txt", "requirements-npu.txt", "requirements-s3.txt", "requirements-ray.txt"]
_LIBC = ["2014", "_2_17", "_2_28", "_2_34"]  # manylinux


def lacking(pins: list[str], machine: str) -> list[str]:
    """Those of the pins for which the index has no wheel."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "pins.txt"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version=3.11", "--target", folder, "-r", str(listed)]
        command += [f"--platform=manylinux{version}_{machine}" for version in _LIBC]
        while True:
            listed.write_text("\n".join(pin for pin in pins if pin not in found))
            done = subprocess.run(command, capture_output=True, text=True)
            if not done.returncode:
                return found
            missing = re.search(r"No matching distribution found for (\S+)", done.stderr)
            if missing is None:
                sys.exit(done.stderr)
            found.append(missing[1])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pins = [line for name in FILES for line in (PROJECT / name).read_text().split("\n") if "==" in line]
    for machine in ("x86_64", "aarch64"):
        print(
            f"{machine}: of {len(pins)} pins without a wheel: {', '.join(lacking(pins, machine)) or 'none'}", flush=True
        )


if __name__ == "__main__":
    main()
