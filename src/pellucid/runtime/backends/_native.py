"""The C code of `fused`, compiled on this machine when it is first needed, and kept in the cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import platformdirs

from pellucid import files
from pellucid.nn import has_amx
from pellucid.progress import stage

SOURCE = Path(__file__).with_name("fused.c")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
SECONDS = 60
"""A compiler that takes longer is given up."""


class NoLibrary(ValueError):
    """The C code cannot be compiled or used here."""


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled code, which this process may use. Raises NoLibrary."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise NoLibrary("there is no C compiler (cc, gcc or clang)")
    flags = (*FLAGS, "-DUSE_AMX") if has_amx() else FLAGS
    path = folder() / f"fused-{key(compiler, flags)}.so"
    loaded = kept(path) or compiled(compiler, flags, path)
    if loaded.allowed() != 0:
        raise NoLibrary("the system does not let this process use AMX")
    return loaded


def folder() -> Path:
    """Where compiled code is kept."""
    return platformdirs.user_cache_path("pellucid", appauthor=False) / "native"


def key(compiler: str, flags: tuple[str, ...]) -> str:
    """Of the source, the compiler and the processor."""
    program = os.stat(compiler)
    seen = hashlib.sha256(SOURCE.read_bytes())
    seen.update(
        repr((flags, os.path.realpath(compiler), program.st_mtime_ns, program.st_size)).encode()
    )
    seen.update(repr((platform.machine(), processor())).encode())
    return seen.hexdigest()[:32]


def processor() -> str:
    """The processor's instructions, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


def compiled(compiler: str, flags: tuple[str, ...], path: Path) -> ctypes.CDLL:
    """Compile the source, and keep it as `path` where that can be written. Raises NoLibrary."""
    try:
        with tempfile.TemporaryDirectory() as room:
            made = Path(room) / "fused.so"
            compile_to(made, compiler, flags)
            content = made.read_bytes()
            content += hashlib.sha256(content).digest()
            unkept = contextlib.suppress(OSError, ValueError)  # it is compiled again the next time
            with unkept, files.new_file(path, make_folder=True) as temporary:
                temporary.write_bytes(content)
            return kept(path) or open_library(made)  # it stays loaded after the file is gone
    except (OSError, AttributeError) as error:
        raise NoLibrary(str(error)) from error


def compile_to(made: Path, compiler: str, flags: tuple[str, ...]) -> None:
    """Compile the source to a file. Raises NoLibrary."""
    command = [compiler, *flags, "-o", str(made), str(SOURCE), "-lm"]
    try:
        with stage("compiling fused.c, once"):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or [str(error)]
        raise NoLibrary(f"{compiler} does not compile it: {lines[0]}") from error
    except subprocess.SubprocessError as error:
        raise NoLibrary(f"{compiler} does not run: {error}") from error


def kept(path: Path) -> ctypes.CDLL | None:
    """What was compiled before; None if there is none, or if it is not whole, as after a power failure:
    opening that would end the process."""
    try:
        content = path.read_bytes()
        whole = hashlib.sha256(content[:-32]).digest() == content[-32:]
        return open_library(path) if whole else None
    except (OSError, AttributeError):
        return None


def open_library(path: Path) -> ctypes.CDLL:
    """Open a compiled file."""
    opened = ctypes.CDLL(str(path))
    opened.allowed.restype = ctypes.c_int
    opened.run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    opened.run.restype = None
    return opened
