"""Many pictures from a file of prompts, variations in prompts, and runs that go on where they were."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pellucid.images.metadata import read_metadata
from pellucid.variations import expand, varied


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_MODEL", str(model_file))
    monkeypatch.setenv("PELLUCID_WILDCARDS", str(tmp_path / "words"))
    (tmp_path / "words" / "more").mkdir(parents=True)
    (tmp_path / "words" / "animal.txt").write_text("# all\ncat\n\n{big|small} dog\n")
    (tmp_path / "words" / "more" / "colour.txt").write_text("red\n")
    (tmp_path / "words" / "loop.txt").write_text("__loop__\n")
    (tmp_path / "words" / "none.txt").write_text("# nothing\n")
    return tmp_path


LINES = """# comments and blank lines are left out

a cat
{"prompt": "a dog", "seed": 9, "count": 2, "guidance": 2.5}
  {red} is a text
"""


def record(path: str | Path) -> dict[str, Any]:
    found = read_metadata(path).request
    assert found is not None
    return found


def test_each_line_and_resuming(here: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("\ufeff" + LINES, "utf-8")
    words = ("generate", "--prompts", "p.txt", "--steps", 1)
    status, out, _ = call(*words)
    assert status == 0 and len(out.split()) == 4
    records = [record(path) for path in out.split()]
    assert [each["prompt"] for each in records] == ["a cat", "a dog", "a dog", "{red} is a text"]
    assert [each["guidance"] for each in records[1:3]] == [2.5, 2.5]
    alone = ("generate", "a dog", "--seed", 10, "--guidance", 2.5, "--steps", 1, "--out", "x.png")
    assert call(*alone)[0] == 0
    assert Image.open("x.png").tobytes() == Image.open("outputs/a-dog-10.png").tobytes()
    # As after a kill: two are missing, and a hidden folder is left.
    Path(out.split()[0]).unlink()
    Path("outputs/a-dog-10.png").unlink()
    Path("outputs/.pellucid-1").mkdir()
    Path("outputs/broken.png").write_bytes(b"\x89PNG")
    status, out, err = call(*words, "--resume")
    assert status == 0 and err.count("is there already") == 2
    assert [record(path)["prompt"] for path in out.split()] == ["a cat", "a dog"]
    assert out.split()[1] == "outputs/a-dog-10.png"
    assert call(*words, "--resume")[:2] == (0, "")
    status, out, err = call(*words, "--resume", "--json", "--grid")
    assert status == 0 and json.loads(out) == {"images": [], "warnings": []} and "grid" not in err
    again = call(*words, "--resume", "--guidance", 4)[1].split()  # another request
    assert [record(path)["prompt"] for path in again] == ["a cat", "{red} is a text"]
    stdin = io.TextIOWrapper(io.BytesIO(b"a cat\na cat\na cat"))
    monkeypatch.setattr(sys, "stdin", stdin)
    out = call("generate", "--prompts", "-", "--steps", 1, "--resume")[1]
    assert len(out.split()) == 2  # each picture counts once


def test_resuming_where_only_some_lines_have_a_seed(here: Path, call: Any) -> None:
    """A line without a seed does not take the picture of one that names its seed."""
    Path("p.txt").write_text('a cat\n{"prompt": "a cat", "seed": 3}\n')
    words = ("generate", "--prompts", "p.txt", "--steps", 1)
    assert call(*words)[0] == 0
    assert call(*words, "--resume")[:2] == (0, "")
    Path("outputs/a-cat-3.png").unlink()
    assert call(*words, "--resume")[:2] == (0, "outputs/a-cat-3.png\n")


def test_lines_end_as_in_text_files(here: Path, call: Any) -> None:
    """Those of Windows and old Macs; what only Unicode calls a line separator ends none."""
    text = '{ "prompt": "a\u2028b" }\r\na\u0085c\rd\n'
    Path("p.txt").write_bytes(text.encode())
    out = call("generate", "--prompts", "p.txt", "--steps", 1)[1]
    prompts = [record(path)["prompt"] for path in out.splitlines()]
    assert prompts == ["a\u2028b", "a\u0085c", "d"]


@pytest.mark.parametrize("line", ["{bad", "[1]", '"a"', "a cat"])
def test_a_line_of_jsonl_is_an_object(line: str, here: Path, refused: Any) -> None:
    """A text file may have "{red} cat" in it."""
    Path("p.jsonl").write_text('{"prompt": "a"}\n' + line)
    assert "p.jsonl, line 2 must be a JSON object, got" in refused(
        "generate", "--prompts", "p.jsonl"
    )


BAD_LINES = {
    b'a\n{"promt": "b"}': "p.txt, line 2: unknown field 'promt'; nearest: prompt",
    b'a\n{"prompt": "b", "steps": 0}': "p.txt, line 2: --steps must be between 1 and 1000, got 0",
    b'{"prompt": "b"': "p.txt, line 1 begins as JSON and is not valid",
    b'a\n\n{"prompt": ["b"]}': "p.txt, line 3: prompt must be text",
    b'{"prompt": "b", "loras": [["no", 1, 1]]}': "p.txt, line 1: no does not exist",
    b'{"prompt": "b", "sampler": "no"}': "p.txt, line 1: unknown sampler",
    b"a\nb\xff": "p.txt, line 2: the text must be UTF-8",
    b"#\n\n": "p.txt has no prompts in it",
    b'{ "promt": "b" }': "p.txt, line 1: unknown field 'promt'; nearest: prompt",
    b'[{"prompt": "b"}]': "p.txt is JSON of several lines or a list; each line must be one object",
    b'\n[\n {"prompt": "b"}\n]': "p.txt is JSON of several lines or a list",
    b'\xef\xbb\xbf{\r\n "prompt": "b"}': "p.txt is JSON of several lines or a list",
    b'{"prompt": "b", "steps": true}': "p.txt, line 1: --steps: it must not be true or false",
    b'{"prompt": "b", "size": "64x64"}': "unknown field 'size'; the fields of --size are width and",
    b'{"prompt": "b", "loras": "no"}': "p.txt, line 1: ",
    b'{"prompt": "b", "loras": ["no"]}': "p.txt, line 1: no does not exist",
    b'{"a' + b"[" * 99_999: "p.txt, line 1 begins as JSON and is not valid",
    b'{"a": ' + b"[" * 99_999: "p.txt, line 1 begins as JSON and is nested too deep",
}


@pytest.mark.parametrize("text", BAD_LINES, ids=lambda text: text[:20].decode(errors="replace"))
def test_a_wrong_line_is_named_before_any_work(text: bytes, here: Path, refused: Any) -> None:
    Path("p.txt").write_bytes(text)
    assert BAD_LINES[text] in refused("generate", "--prompts", "p.txt")
    assert not Path("outputs").exists()


def test_what_is_refused(here: Path, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.txt").write_text("a\nb")
    assert "--prompts p.txt draws each line" in refused("generate", "@p.txt")
    assert "not both" in refused("generate", "x", "--prompts", "p.txt")
    Path("p.csv").write_text("prompt,seed\na,1")
    assert "p.csv is a table" in refused("generate", "--prompts", "p.csv")
    assert "No such file" in refused("generate", "--prompts", "q.txt")
    monkeypatch.setattr(sys, "stdin", None)  # as with <&-
    assert "standard input is closed" in refused("generate", "--prompts", "-")
    for empty in ("", " "):
        assert "--out must not be empty" in refused("generate", "x", "--out", empty)
    assert "--out must be a file or a folder, got -" in refused("generate", "x", "--out", "-")
    assert "Is a directory" in refused("generate", "--prompts", "words")
    said = refused("generate", "--prompts", "p.txt", "--out", "x.png")
    assert "--out must be a folder for 2 pictures" in said
    assert "needs a --seed" in refused("generate", "{a|b}", "--dynamic", "--resume")


def test_a_line_that_cannot_be_drawn_does_not_stop_the_others(here: Path, call: Any) -> None:
    Path("p.txt").write_text('{"prompt": "a", "width": 17}\nb')
    status, out, err = call("generate", "--prompts", "p.txt", "--steps", 1)
    assert status == 2 and len(out.split()) == 1
    assert "p.txt, line 1: " in err and "multiple of" in err


# ---------------------------------------------------------------- variations


def test_dynamic_prompts(here: Path, call: Any) -> None:
    template = "a {red|blue|green} __animal__"
    words = ("generate", template, "--seed", 5, "--steps", 1)
    made = call(*words, "--count", 3, "--dynamic")[1].split()
    for i, path in enumerate(made):
        found = record(path)
        assert found["prompt"] == expand(template, 5 + i, here / "words")
        assert (found["seed"], found["template"]) == (5 + i, template)
    like = ("generate", "--like", made[1], "--out", "like.png")
    status, _, err = call(*like)
    assert status == 0 and "do not exist here" not in err
    first, again = Image.open(made[1]), Image.open("like.png")
    assert first.tobytes() == again.tobytes()
    assert "--dynamic draws its variations" in call(*words)[2]
    assert record("outputs/a-red-blue-green-animal-5.png")["prompt"] == template


def test_what_is_drawn(here: Path) -> None:
    def every(template: str) -> set[str]:
        return {expand(template, seed, here / "words") for seed in range(200)}

    assert every("{a|b} {{c}}") == {"a c", "b c"}
    assert every("{2$$a|b|c}") == {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}
    assert every("{1-2$$ and $$a|b}") == {"a", "b", "a and b", "b and a"}
    assert every("{9$$a|b}") == {"a, b", "b, a"}
    assert every("{0-1$$a}") == {"", "a"}
    assert every("{a|{b|c}}|") == {"a|", "b|", "c|"}
    assert every("__animal__, __more/colour__") == {
        f"{x}, red" for x in ("cat", "big dog", "small dog")
    }
    assert every(r"\{a\|b\} (x:1.2) __ _a_") == {"{a|b} (x:1.2) __ _a_"}
    assert every("{0::a|b}") == {"b"} and every("{|x}") == {"", "x"}
    assert every("__an*__") == {"cat", "big dog", "small dog"}
    assert every("__more/*__") == {"red"} and varied("a __b*__")
    many = Counter(expand("{3::a|1::b}", seed, here) for seed in range(2000))
    assert 1400 < many["a"] < 1600
    assert not varied("a {cat}, [a|b]") and varied("{a|b}") and varied("a __b__")


def test_draws_stay_the_same(here: Path) -> None:
    """A seed draws the same prompt with every version of Python."""
    drawn = [expand("{a|b|c|d} {2$$1|2|3}", seed, here) for seed in range(6)]
    assert drawn == DRAWN


DRAWN = ["d 1, 3", "d 1, 2", "d 1, 3", "c 2, 3", "a 1, 2", "c 3, 2"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a", "has a { without its }"),
        ("a}", "has a } without its {"),
        ("__nothing__", "no word list named 'nothing'; nearest: "),
        ("__../secret__", "no word list named '../secret'"),
        ("__loop__", "more than 20 deep"),
        ("__none__", "has no words in it"),
        ("a __x*__", "no word list named 'x*'"),
        ("{nan::a|b}", "a weight of a variation must be a number such as 0.5, got 'nan'"),
        ("{-1::a|b}", "a weight of a variation must be a number such as 0.5, got '-1'"),
        ("{" * 50 + "}" * 50, "more than 20 deep"),
    ],
)
def test_wrong_variations(template: str, message: str, here: Path, refused: Any) -> None:
    assert message in refused("generate", template, "--dynamic")


def test_json_has_all_pictures(here: Path, call: Any) -> None:
    Path("p.txt").write_text("a\nb")
    found = json.loads(call("generate", "--prompts", "p.txt", "--steps", 1, "--json")[1])
    assert [each["request"]["prompt"] for each in found["images"]] == ["a", "b"]
