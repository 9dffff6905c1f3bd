"""The same request draws the same picture as when it was frozen: see `same_pictures`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import same_pictures
from same_pictures import BASE, REQUESTS

KEPT = same_pictures.load_kept()
AGAIN = "python tests/same_pictures.py --write"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The files of the requests, which are large: they and the open models go at once."""
    with tempfile.TemporaryDirectory() as place:
        same_pictures.build(Path(place))
        yield Path(place)
        same_pictures.open_model.cache_clear()


def test_every_request_is_frozen() -> None:
    assert KEPT.keys() == REQUESTS.keys(), f"run {AGAIN}"


def test_every_setting_is_named() -> None:
    """A request that leaves a setting open would change with its default."""
    assert BASE.keys() == same_pictures.request_fields(), (
        "add the setting to BASE in tests/same_pictures.py, with the value that leaves the "
        "pictures as they are"
    )


@pytest.mark.parametrize("name", REQUESTS)
def test_same_picture(name: str, folder: Path) -> None:
    off = same_pictures.distances(same_pictures.drawn(name, folder), KEPT[name])
    wrong = {what: f"{amount:.2f} times the limit" for what, amount in off.items() if amount > 1}
    assert not wrong, f"this request draws another picture than before; if that is meant: {AGAIN}"
