"""Writes aclnn.txt: which of MindSpore's primitives have an aclnn kernel, and which only view memory, as the installed
package's plug-in for NPUs answers.  python -m tests.golden.make_aclnn

The plug-in (libmindspore_ops_ascend.so) wants CANN's libraries. Nothing of them is called where it says what it has, so
empty functions under their names will do; gcc and nm make them. MindSpore itself asks IsRegisteredAclnnOp and
IsAclnnViewOp when it selects an NPU's kernels. They take a C++ string of GCC's old form, whose length, capacity and
owners stand before its characters."""

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ACLNN = Path(__file__).parent / "aclnn.txt"
PLUG_IN = "plugin/libmindspore_ops_ascend.so"
MISSING = ("mindspore_ascend_res_manager", "d_collective")  # libraries of the package that need CANN themselves
STATUS = "_ZN2ge13StatusFactory8InstanceEv"  # gives an object with a std::map, which is filled when the plug-in loads


def symbols(which: str, library: Path) -> set[str]:
    lines = subprocess.run(["nm", "-D", which, library], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if line.split()[-2] != "w"}


def stub(folder: Path, names: set[str]) -> None:
    lines = [
        "static char zeros[4096]; static void* map[8];",
        f"void* {STATUS}(void) {{ if (!map[3]) map[3] = map[4] = &map[1]; return map; }}",
    ]
    for name in sorted(names - {STATUS}):
        data = name.startswith("_ZT") or name.endswith("_E")
        lines.append(f"char {name}[4096];" if data else f"void* {name}(void) {{ return zeros; }}")
    for name, source in zip(MISSING, ("\n".join(lines), ""), strict=True):
        command = ["gcc", "-shared", "-fPIC", "-w", "-o", folder / f"lib{name}.so", "-x", "c", "-"]
        subprocess.run(command, input=source, text=True, check=True)


def answers(names: list[str]) -> dict[str, str]:
    """{primitive: "kernel" or "view"}, in a process whose LD_LIBRARY_PATH has the stubs"""
    import mindspore

    lib = Path(mindspore.__file__).parent / "lib"
    ctypes.CDLL(lib / "libmindspore_ops_host.so", mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
    plug_in = ctypes.CDLL(lib / PLUG_IN, mode=os.RTLD_LAZY)

    def says(function: str, name: str) -> bool:
        text = name.encode()
        string = ctypes.create_string_buffer(struct.pack("<qqi4x", len(text), len(text), 1) + text + b"\0")
        ask = plug_in[function]
        ask.restype = ctypes.c_bool
        return ask(ctypes.byref(ctypes.c_void_p(ctypes.addressof(string) + 24)))

    found = {name: "kernel" for name in names if says("_ZN9mindspore6kernel19IsRegisteredAclnnOpERKSs", name)}
    return {name: "view" for name in names if says("_ZN9mindspore6kernel13IsAclnnViewOpERKSs", name)} | found


def main() -> None:
    import mindspore
    from mindspore.ops import operations
    from mindspore.ops.auto_generate import gen_ops_prim

    if "stubs" in sys.argv:
        names = [name for name in {**vars(gen_ops_prim), **vars(operations)} if name[0].isupper()]
        found = answers(names)
        head = f"# MindSpore {mindspore.__version__}: primitives with an aclnn kernel, and views; by make_aclnn.py\n"
        ACLNN.write_text(head + "".join(f"{name} {kind}\n" for name, kind in sorted(found.items())))
        return
    lib = Path(mindspore.__file__).parent / "lib"
    linked = subprocess.run(["ldd", lib / PLUG_IN], capture_output=True, text=True, check=True).stdout.split()
    had = {name for path in linked if path.startswith("/") for name in symbols("--defined-only", Path(path))}
    had |= symbols("--defined-only", lib / "libmindspore_ops_host.so")
    with tempfile.TemporaryDirectory() as folder:
        stub(Path(folder), symbols("--undefined-only", lib / PLUG_IN) - had)
        command = [sys.executable, "-m", "tests.golden.make_aclnn", "stubs"]
        subprocess.run(command, env=os.environ | {"LD_LIBRARY_PATH": folder}, check=True)


if __name__ == "__main__":
    main()
