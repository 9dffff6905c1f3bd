"""Pictures that were drawn are never lost, and what can be known before is said before."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inputs import environment, run, unprivileged
from PIL import Image

from pellucid import checkpoints, cli, pipeline
from pellucid.cli import _process

Draw = Callable[..., tuple[int, str, str]]


@pytest.fixture
def draw(call: Any, model_file: Path) -> Draw:
    """`generate` with the tiny model: exit status, stdout, stderr."""

    def tiny(*words: object, prompt: str = "a cat") -> tuple[int, str, str]:
        common = ("--model", model_file, "--seed", 1)
        result: tuple[int, str, str] = call("generate", prompt, *common, *words)
        return result

    return tiny


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if not path.name.startswith("."))


# ---------------------------------------------------------------- 18: one name for several runs

# Six processes that have imported all before, and then run at the same moment.
AT_ONCE = """
import os, sys, time
import pellucid.pipeline, pellucid.cli.generate, pellucid.images, pellucid.adapters, PIL.PngImagePlugin
from pellucid.cli import main
count, *words = sys.argv[1:]
begin = time.time() + 0.3
children = []
for number in range(int(count)):
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            for more in ([], ["--film"]):
                time.sleep(max(begin - time.time(), 0))
                sys.argv = ["pellucid", *words, *more]
                main()
        except BaseException as end:
            status = 1
        finally:
            sys.stdout.flush()
            os._exit(status)
    children.append(pid)
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""


def test_six_runs_at_once(model_file: Path, tmp_path: Path) -> None:
    """Case 18: the same prompt, seed and folder; each run has files of its own, and names them.

    Each draws a picture, and then another one with its strip and film.
    """
    words = ("generate", "a cat", "--seed", "1", "--steps", "1", "--out", tmp_path)
    command = [sys.executable, "-c", AT_ONCE, "6", *map(str, words), "--model", str(model_file)]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    named = done.stdout.decode().split()
    assert len(named) == len(set(named)) == 6 * (1 + 3)
    assert {Path(name) for name in named} == {p for p in tmp_path.iterdir() if p.is_file()}
    for name in named:
        with Image.open(name) as picture:
            picture.load()


@pytest.mark.parametrize("kind", ["dangling", "file", "folder"])
def test_a_name_that_is_taken(kind: str, draw: Draw, tmp_path: Path) -> None:
    """Case 18: by a link to nowhere, a file, a folder: all stay as they are."""
    first = Path(draw("--out", tmp_path)[1].strip())
    first.unlink()
    if kind == "dangling":
        first.symlink_to(tmp_path / "nowhere.png")
    elif kind == "file":
        first.write_bytes(b"mine")
    else:
        first.mkdir()
    status, out, err = draw("--out", tmp_path)
    assert status == 0, err
    assert Path(out.strip()) != first and Path(out.strip()).is_file()
    assert not (tmp_path / "nowhere.png").exists()
    assert kind != "file" or first.read_bytes() == b"mine"


# ---------------------------------------------------------------- 19: known before, said before


@pytest.fixture
def readable() -> Iterator[Path]:
    """A place in which others than root may go."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("out", ["", "new", "picture.png", "new/deep/picture.png"])
def test_a_folder_that_is_read_only(
    out: str, refused: Any, readable: Path, no_drawing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 19: it is said before the first step. The model is the one that ships."""
    with unprivileged(readable / "closed") as folder:
        folder.chmod(0o555)
        said = refused("generate", "a cat", "--seed", 1, "--out", folder / out)
        assert "closed" in said


@pytest.mark.parametrize("length", [252, 300])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_name_that_is_too_long(
    length: int, ending: str, refused: Any, tmp_path: Path, no_drawing: None
) -> None:
    """Case 19: a name of more than 255 bytes."""
    refused("generate", "a cat", "--seed", 1, "--out", tmp_path / ("x" * length + ending))


@pytest.mark.parametrize("name", ["x" * 240, "x" * 244, "x" * 251, "ü" * 125])
def test_a_long_name_that_is_allowed(name: str, draw: Draw, tmp_path: Path) -> None:
    """Case 19: a name of 255 bytes is a name, and the temporary one may not be longer."""
    path = tmp_path / f"{name}.png"
    assert draw("--out", path)[:2] == (0, f"{path}\n")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("ending", "length"), [("jpg", 8_000), ("jpg", 32_000), ("webp", 12_000), ("png", 12_000)]
)
def test_settings_that_are_too_long_for_a_jpeg(
    length: int, ending: str, call: Any, model_file: Path, tmp_path: Path
) -> None:
    """Case 19: 64 kB are all the EXIF that a JPEG has; it is said first, or the picture is there."""
    steps = []
    real = pipeline.generate

    def counted(*args: Any, **options: Any) -> Iterator[Any]:
        for progress in real(*args, **options):
            steps.append(progress)
            yield progress

    out = tmp_path / f"a.{ending}"
    prompt = ("abcdefgh, " * (length // 10))[:length]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.pipeline.generate", counted)
        words = ("--model", model_file, "--guidance", 1, "--steps", 1, "--seed", 1, "--out", out)
        status, told, err = call("generate", prompt, *words)
    if status == 0:
        assert told.strip() and Path(told.strip()).is_file()
    else:
        assert not steps, "it was drawn, and lost"
        assert ending == "jpg" and "64" in err


@pytest.mark.parametrize("kind", ["became a file", "was removed"])
def test_a_picture_that_cannot_be_written_is_kept_elsewhere(
    kind: str, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 19: what happens to the folder meanwhile loses no picture, and its path is said."""
    folder = tmp_path / "folder"
    folder.mkdir()
    real = pipeline.generate

    def generate(*args: Any, **options: Any) -> Iterator[Any]:
        for progress in real(*args, **options):
            if progress.images is not None:
                shutil.rmtree(folder)
                if kind == "became a file":
                    folder.write_bytes(b"")
            yield progress

    monkeypatch.setattr("pellucid.pipeline.generate", generate)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    _, out, err = draw("--out", folder)
    words = (out + " " + err).replace("\n", " ").split()
    named = [Path(word.strip(".,:;'\"()")) for word in words if ".png" in word]
    there = [path for path in named if path.is_file()]
    assert there, out + err
    with Image.open(there[-1]) as picture:
        assert picture.size == (16, 16)


# ---------------------------------------------------------------- 20: folders with a dot


@pytest.mark.parametrize(
    "name",
    ["sd1.5", "new.v2/", "a.b/c.d", "2026.11.30", "model.safetensors", "pictures.png/", "..x"],
)
def test_folders_with_a_dot(name: str, draw: Draw, tmp_path: Path) -> None:
    """Case 20: what is no ending of a picture is a folder, and so is what ends in a slash."""
    status, out, err = draw("--out", f"{tmp_path}/{name}")
    assert status == 0, err
    assert Path(out.strip()).parent == tmp_path / name


@pytest.mark.parametrize("name", ["a.bmp", "a.tiff", "a.gif", "a.jpe", "a.PNGG", "a.avif"])
def test_pictures_that_cannot_be_written(
    name: str, refused: Any, tmp_path: Path, no_drawing: None
) -> None:
    """Case 20: an ending that means a picture of another format, or a slip, is still refused."""
    assert name in refused("generate", "a cat", "--out", tmp_path / name)


# ---------------------------------------------------------------- 21: an output that is not UTF-8


class Stdout(io.TextIOWrapper):
    """A standard output of another encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def bytes(self) -> bytes:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("way", ["path", "json", "info", "tokens"])
def test_output_that_is_not_utf_8(
    encoding: str, way: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 21: the path is printed, in bytes of the file system, and the status is 0."""
    out, err = Stdout(encoding), Stdout(encoding)
    words = ["generate", "雪 ☃ Ж", "--model", model_file, "--seed", 1, "--out", tmp_path / "Ж"]
    if way == "json":
        words.append("--json")
    if way == "info":
        Image.new("RGB", (8, 8)).save(tmp_path / "雪.jpg", comment="雪", exif=b"")
        words = ["info", tmp_path / "雪.jpg"]
    if way == "tokens":
        words = ["tokens", "雪 ☃ Ж", "--model", model_file, "--json"]
    monkeypatch.setattr(sys, "argv", ["pellucid", *map(str, words)])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    said = out.bytes()
    assert status == 0, err.bytes()
    assert said
    if way == "path":
        assert Path(os.fsdecode(said.rstrip(b"\n"))).is_file() or b"\\u" in said
    if way == "json":
        assert Path(json.loads(said)["images"][0]["path"]).is_file()


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
def test_no_output_at_all(
    stream: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 21: `>&-` leaves Python without the stream; the picture is saved, without a traceback."""
    words = ("generate", "a cat", "--model", model_file, "--seed", 1, "--out", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pellucid", *map(str, words)])
    for name in ("stdout", "stderr") if stream == "both" else (stream,):
        monkeypatch.setattr(sys, name, None)
    status = 0
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    assert status in (0, 1) and len(pictures(tmp_path)) == 1


def test_a_locale_that_is_not_utf_8(model_file: Path, tmp_path: Path) -> None:
    """Case 21: LC_ALL=C with Python's own help switched off, as in cron and old containers."""
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("generate", "a cät", "--model", model_file, "--seed", 1, "--out", tmp_path / "ü")
    done = run(*words, env=environment(**variables))
    assert done.returncode == 0, done.stderr
    (path,) = pictures(tmp_path)
    assert done.stdout.rstrip(b"\n") in (os.fsencode(path), ascii(str(path))[1:-1].encode())


# ---------------------------------------------------------------- 22: modes of files


def refuse_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("chmod", "fchmod", "lchmod", "chown", "fchown"):
        monkeypatch.setattr(os, name, refuse, raising=False)


def written(kind: str, call: Any, model_file: Path, sd1_file: Path, folder: Path) -> list[Path]:
    """A picture, a model, a folder of a model, a page, latents, a LoRA: what this program writes."""
    target = folder / "written"
    words: dict[str, tuple[object, ...]] = {
        "picture": ("generate", "a cat", "--model", model_file, "--seed", 1, "--out", target),
        "JPEG": ("generate", "a", "--model", model_file, "--out", folder / "written.jpg"),
        "film": ("generate", "a", "--model", model_file, "--film", "--out", target),
        "native": ("convert", model_file, target, "--to", "native"),
        "ldm": ("convert", sd1_file, target, "--to", "ldm"),
        "diffusers": ("convert", sd1_file, target, "--to", "diffusers"),
        "page": (
            "explain",
            "a cat",
            "--model",
            model_file,
            "--steps",
            2,
            "--out",
            target.with_suffix(".html"),
        ),
    }
    status, _, err = call(*words[kind])
    assert status == 0, err
    return [path for path in folder.rglob("*") if path.name.startswith("written") or path.is_file()]


KINDS = ("picture", "JPEG", "film", "native", "ldm", "diffusers", "page")


@pytest.mark.parametrize("kind", KINDS)
def test_file_systems_without_modes(
    kind: str,
    call: Any,
    model_file: Path,
    sd1_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case 22: SMB, exFAT and S3 answer chmod with EPERM; that is no reason to lose a file."""
    refuse_modes(monkeypatch)
    assert written(kind, call, model_file, sd1_file, tmp_path)


MASKS = [*((kind, 0o077) for kind in KINDS), ("picture", 0o002), ("native", 0o002), ("JPEG", 0o027)]


@pytest.mark.parametrize(("kind", "mask"), MASKS)
def test_modes_are_those_of_the_umask(
    kind: str, mask: int, call: Any, model_file: Path, sd1_file: Path, tmp_path: Path, umask: Any
) -> None:
    """Case 22: as every program's: 077 shows nothing to others, 002 lets the group write."""
    umask(mask)
    for path in written(kind, call, model_file, sd1_file, tmp_path):
        usual = 0o777 if path.is_dir() else 0o666
        assert oct(path.stat().st_mode & 0o777) == oct(usual & ~mask), path


# ---------------------------------------------------------------- 30: Ctrl-C at once

# The interrupt comes when this module is looked for.
INTERRUPTED = """
import os, runpy, signal, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = ["pellucid", *sys.argv[1:]]
runpy.run_module("pellucid", run_name="__main__")
"""
MODULES = ("typer", "pellucid.cli.train", "torch", "pellucid.pipeline")


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_modules_are_imported(module: str, tmp_path: Path) -> None:
    """Case 30: it is not swallowed, and shows no traceback, from the first line of the package on."""
    words = ("generate", "a cat", "--seed", "1", "--steps", "2", "--out", str(tmp_path))
    command = [sys.executable, "-c", INTERRUPTED.format(module=module), *words]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=60)
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr
    assert done.returncode in (130, -2)
    assert not list(tmp_path.iterdir())


# A mutex that is locked twice: an operation of C code that no signal ends.
LONG_OPERATION = """
import ctypes
from pellucid.cli._process import stopped_by_signals
with stopped_by_signals():
    mutex, lock = ctypes.create_string_buffer(128), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    print("locked", flush=True)
    lock(mutex)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the mutex and /proc of Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_long_operation(number: signal.Signals) -> None:
    """A step of a large picture takes minutes: the first signal says what it waits for."""
    with subprocess.Popen(
        [sys.executable, "-c", LONG_OPERATION],
        env=environment(),
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == b"locked\n"
            while Path(f"/proc/{process.pid}/stat").read_text().split(")")[1].split()[0] != "S":
                time.sleep(0.005)
            process.send_signal(number)
            process.send_signal(number)  # as `timeout` does
            assert b"press Ctrl-C again to stop at once" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(30) == 128 + number
            assert process.stderr.read() == b"pellucid: stopped\n"
        finally:
            process.kill()


def test_a_signal_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not interrupt a picture that is being written; one that comes later does."""
    now = iter((5.0, 5.09, 6.0, 6.05, 6.2))
    monkeypatch.setattr(_process.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(_process, "_taken_at", None)
    with pytest.raises(KeyboardInterrupt), _process.held_signals():
        _process._stop(signal.SIGINT, None)
        _process._stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        _process._stop(signal.SIGINT, None)
    _process._stop(signal.SIGINT, None)
    with pytest.raises(SystemExit):
        _process._stop(signal.SIGTERM, None)


def test_a_disk_that_is_full_is_named_before_the_work(
    refused: Any, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checkpoints, "load", None)  # it is not called
    said = refused("generate", "x", "--model", model_file)
    assert "outputs cannot be written: about 2 MB are needed, and . has only 0.0 MB" in said


def test_a_lora_that_is_missing_is_named_before_the_model_is_loaded(
    refused: Any, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").touch()
    monkeypatch.setattr(checkpoints, "load", None)
    words = ("generate", "x", "--model", model_file)
    for more in (("--lora", "no"), ("--embedding", "no"), ("--vae", "no"), ("--refiner", "no")):
        assert "no does not exist" in refused(*words, *more)
    said = refused("generate", "<lora:no:1>", "--model", model_file, "--lora-folder", "loras")
    assert "unknown LoRA in loras named 'no'; choices, nearest first: ink" in said


def test_a_disk_that_the_pictures_would_not_fit_on(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the first step and not after the last; so many more would fit as JPEG."""
    monkeypatch.chdir(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    status, _, said = call("generate", "a cat", "--steps", 1, "--count", 60)
    assert status == 2
    assert "outputs cannot be written: about 4 MB are needed, and . has only 3.0" in said
    assert not (tmp_path / "outputs").exists()
    assert call("generate", "a cat", "--steps", 1, "--out", "a.jpg")[0] == 0
    model = tmp_path / "m.safetensors"
    status, _, said = call("convert", checkpoints.embedded(), model, "--to", "native")
    assert status == 2 and "m.safetensors cannot be written: about" in said and not model.exists()


LONG = {
    "train lora": ("train", "lora", "data=docs/examples/ink", "out={}/x.safetensors"),
    "train clip": ("train", "clip", "data=docs/examples/ink", "size=32", "out={}/x"),
    "train gan": ("train", "gan", "data=docs/examples/ink", "size=32", "out={}"),
    "train pack": ("train", "pack", "out={}/x.safetensors"),
    "compare": ("compare", "--data", "ring", "--out", "{}/x"),
    "evaluate": ("evaluate", "--out", "{}"),
    "data": ("data", "emoji", "--packages", "no", "--out", "{}/x.npz"),
    "merge": ("merge", "a", "b", "--out", "{}/x.safetensors"),
    "noise": ("noise", "docs/examples/cat.png", "--out", "{}/x.html"),
}


@pytest.mark.parametrize("command", LONG)
def test_an_output_that_cannot_be_written_is_named_before_the_work(
    command: str, refused: Any, tmp_path: Path
) -> None:
    """Issue 12, section 5: also where hours of training would come first."""
    taken = tmp_path / "taken"
    taken.write_bytes(b"mine")
    said = refused(*(word.format(taken) for word in LONG[command]))
    assert str(taken) in said and ("cannot be written" in said or "must be a folder" in said)


def test_an_unknown_backend_is_named_before_the_model_is_loaded(
    refused: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "load", None)
    words = ("generate", "x", "--model", model_file)
    assert "unknown backend 'eagre'; choices, nearest first: eager" in refused(
        *words, "--backend", "eagre"
    )
