"""Compiles src/atoll/learn/kernel.c into the wheel and into editable installs, where there is a C compiler.

Without one, or where compiling fails, the wheel is pure Python and the learners run on numpy.
The same file is compiled once per instruction set and the best one is chosen when it runs, so a
wheel built on one machine runs on any other of its platform; -march=native would not. The
compiler is $CC, else cc, gcc or clang (gcc 12, clang 12 or newer); ATOLL_NO_KERNEL=1 skips it.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LEARN = Path("src/atoll/learn")
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fvisibility=default", "-Wno-psabi")
X86 = (
    ("avx512", ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma")),
    ("avx2", ("-mavx2", "-mfma")),
)


def build(root: Path) -> Path | None:
    """Compile the kernel below `root`; the library's path, or None with the reason on stderr."""
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    compiler = shlex.split(os.environ.get("CC", "")) or ([found] if found else [])
    if os.environ.get("ATOLL_NO_KERNEL") or not compiler or sys.platform == "win32":
        return _skipped("no C compiler was found or wanted")
    source, library = root / LEARN / "kernel.c", root / LEARN / "_kernel.so"
    many = platform.machine().lower() in ("x86_64", "amd64") and sys.platform != "darwin"
    variants = (*X86, ("plain", ("-DLEVELS",))) if many else (("plain", ()),)
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / f"{name}.o") for name, _ in variants]
        fresh = Path(folder) / library.name
        try:
            for (_, flags), made in zip(variants, objects, strict=True):
                _run([*compiler, *FLAGS, *flags, "-c", str(source), "-o", made])
            _run([*compiler, "-shared", *objects, "-lm", "-o", str(fresh)])
        except (OSError, subprocess.CalledProcessError) as error:
            return _skipped(getattr(error, "stderr", None) or str(error))
        library.unlink(missing_ok=True)  # a running process keeps the old one
        shutil.copy(fresh, library)
    return library


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603  the builder's own compiler


def _skipped(reason: str) -> None:
    sys.stderr.write(
        f"atoll: built without the compiled kernel ({reason.strip()}); learners will run on numpy\n"
    )


class KernelHook(BuildHookInterface[Any]):
    """Hatchling calls this before it packs a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = build(Path(self.root))
        if library is not None:
            system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["artifacts"].append(f"/{LEARN}/{library.name}")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{system}"  # no Python headers: any Python, this platform
