"""Files and folders appear whole or not at all."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pellucid.files import new_file, new_folder, write_tensors, write_text


class Refused(ValueError):
    """What a caller wants to be raised."""


@contextmanager
def small_disk(size: int = 4096) -> Iterator[None]:
    """No file may be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with new_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent.parent == tmp_path and path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "text", "x")
    write_tensors(tmp_path / "tensors", {"x": torch.ones(2)}, {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_what_is_interrupted_leaves_the_old(error: type[BaseException], tmp_path: Path) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "b"
    write_text(path, "old")
    folder.mkdir()
    (folder / "old").touch()
    expected = ValueError if error is OSError else error
    with pytest.raises(expected), new_file(path) as temporary:
        temporary.write_text("half")
        raise error("stopped")
    with pytest.raises(expected), new_folder(folder) as made:
        (made / "half").touch()
        raise error("stopped")
    assert path.read_text() == "old" and [file.name for file in folder.iterdir()] == ["old"]
    assert sorted(tmp_path.iterdir()) == [path, folder]


def test_a_full_disk_is_an_error_of_the_callers_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with small_disk():
        with pytest.raises(Refused, match=r"a\.bin could not be written: .*File too large"):
            write_tensors(path, {"x": torch.ones(3000)}, {}, Refused)
        with (
            pytest.raises(Refused, match=r"a\.bin could not be written: File too large"),
            new_file(path, Refused) as temporary,
            open(temporary, "wb") as file,
        ):
            torch.save(torch.ones(3000), file)  # a RuntimeError that hides the disk's
    assert not list(tmp_path.iterdir())
    write_tensors(path, {"x": torch.ones(3)}, {"a": "b"}, Refused)
    assert torch.equal(load_file(path)["x"], torch.ones(3))


def test_a_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a.txt"
    sentence = r"a\.txt cannot be written: .*none is not a folder"
    with pytest.raises(Refused, match=sentence), new_file(path, Refused):
        pass
    with pytest.raises(Refused, match="is not a folder"), new_folder(path, Refused):
        pass
    with new_file(path, make_folder=True) as temporary:
        temporary.touch()
    assert path.is_file()
    sentence = "could not be written"
    with pytest.raises(ValueError, match=sentence), new_file(path / "b", make_folder=True):
        pass


def test_a_new_folder_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for name in ("first", "second"):
        with new_folder(path) as made:
            (made / name).touch()
        assert [file.name for file in path.iterdir()] == [name]
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="file could not be written"),
        new_folder(tmp_path / "file"),
    ):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "model"]


def test_text_that_is_no_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\ud800")
    assert (tmp_path / "a").read_text("utf-8") == "é?"
