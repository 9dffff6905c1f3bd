"""Folders of pictures with captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pellucid.data.imagefolder import pictures


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def test_jsonl(tmp_path: Path) -> None:
    b, a = draw(tmp_path / "b.png"), draw(tmp_path / "sub" / "a.jpg")
    draw(tmp_path / "unnamed.png")
    rows = [{"file_name": "sub/a.jpg", "text": "a\u2028cat"}, {"file_name": "b.png", "text": ""}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    assert list(pictures(tmp_path)) == [(b, ""), (a, "a\u2028cat")]


def test_csv_with_byte_order_mark_and_commas(tmp_path: Path) -> None:
    a = draw(tmp_path / "a.png")
    text = '\ufefffile_name,text\r\na.png,"a cat, a dog"\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    assert list(pictures(tmp_path)) == [(a, "a cat, a dog")]


def test_sidecars_and_labels(tmp_path: Path) -> None:
    a, b = draw(tmp_path / "a.png"), draw(tmp_path / "b.PNG")
    c = draw(tmp_path / "red_apple" / "1.webp")
    (tmp_path / "a.txt").write_text("a  frog\n")
    (tmp_path / "b.caption").write_text("a toad")
    (tmp_path / "README.txt").write_text("about these")
    assert list(pictures(tmp_path)) == [(a, "a frog"), (b, "a toad"), (c, "red apple")]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        list(pictures(tmp_path / "nowhere"))


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(ValueError, match="no pictures"):
        list(pictures(tmp_path))


def test_picture_without_caption(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: no caption"):
        list(pictures(tmp_path))


def test_sidecar_without_picture(tmp_path: Path) -> None:
    draw(tmp_path / "cats" / "a.png")
    (tmp_path / "cats" / "b.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"b\.txt: a caption without a picture"):
        list(pictures(tmp_path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"file_name": "a.png", "text": ', "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"file_name": "a.png"}', "line 2: needs file_name and text"),
        ('{"file_name": "gone.png", "text": "x"}', r"line 2: gone\.png is not in the folder"),
        ('{"file_name": "../up.png", "text": "x"}', "line 2: .* outside"),
    ],
)
def test_bad_lines_are_named_before_any_picture_is_given(
    tmp_path: Path, line: str, complaint: str
) -> None:
    draw(tmp_path / "a.png")
    good = '{"file_name": "a.png", "text": "x"}'
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=complaint):
        next(pictures(tmp_path))


def test_csv_without_the_columns(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("name,caption\na.png,x\n")
    with pytest.raises(ValueError, match="columns file_name and text"):
        list(pictures(tmp_path))


def test_two_metadata_files(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="keep one"):
        list(pictures(tmp_path))
