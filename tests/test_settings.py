"""Settings of one's own: the file, the environment, folders of models, names of pictures."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pellucid import checkpoints
from pellucid.folders import Folder
from pellucid.images.metadata import read_metadata
from pellucid.model import Model
from pellucid.output_names import FIELDS, checked, name_for
from pellucid.settings import Settings, load_settings
from references import make_lora


@pytest.fixture
def home(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: models, LoRAs and an embedding, and a file of settings that names them."""
    monkeypatch.chdir(tmp_path)
    for name in ("sd15", "sd21", "xl/Big-Model"):
        path = tmp_path / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(model, path)
    make_lora(model, tmp_path / "loras" / "paint.safetensors")
    make_lora(model, tmp_path / "loras" / "style" / "ink.safetensors")
    (tmp_path / "words").mkdir()
    save_file({"emb_params": torch.randn(2, 16)}, tmp_path / "words" / "my-frog.safetensors")
    write(
        tmp_path,
        'model = "sd15"\nmodels = "models"\nloras = "loras"\nembeddings = "words"\n'
        '[defaults."sd*"]\nsteps = 2\nguidance = 3\n[defaults.sd15]\nguidance = 2.5\n',
    )
    monkeypatch.setenv("PELLUCID_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path


def write(folder: Path, text: str) -> None:
    (folder / "config.toml").write_text(text, "utf-8")


def record(path: Path) -> dict[str, Any]:
    found = read_metadata(path).request
    assert found is not None
    return found


def test_flags_environment_file_defaults(
    home: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = call("config", "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)["settings"]
    assert rows["model"] == {"value": "sd15", "from": str(home / "config.toml")}
    assert rows["name"] == {"value": "{prompt}-{seed}", "from": "default"}
    assert rows["defaults"]["value"]["sd15"] == {"guidance": 2.5}
    monkeypatch.setenv("PELLUCID_MODEL", "sd21")
    monkeypatch.setenv("PELLUCID_OUTPUTS", "~/pictures")
    rows = json.loads(call("config", "--json")[1])["settings"]
    assert rows["model"] == {"value": "sd21", "from": "PELLUCID_MODEL"}
    assert rows["outputs"]["value"] == str(Path.home() / "pictures")
    monkeypatch.setenv("PELLUCID_OUTPUTS", "")  # as if it was not set
    assert "sd21  (PELLUCID_MODEL)" in call("config")[1]
    assert call("generate", "x", "--seed", 1)[:2] == (0, f"{Path('outputs/x-1.png')}\n")
    made = record(home / "outputs" / "x-1.png")
    assert (made["model_file"], made["steps"], made["guidance"]) == (
        "models/sd21.safetensors",
        2,
        3,
    )
    words = ("generate", "x", "--seed", 2, "--model", "sd15", "--steps", 1, "--out", "two.png")
    assert call(*words)[0] == 0
    made = record(home / "two.png")
    assert (made["model_file"], made["steps"]) == ("models/sd15.safetensors", 1)
    assert made["guidance"] == 2.5  # the later table


def test_like_does_not_depend_on_the_settings(home: Path, call: Any) -> None:
    assert call("generate", "x", "--model", "emoji", "--steps", 1, "--out", "one.png")[0] == 0
    assert "model_file" not in record(home / "one.png")  # the one that ships
    assert call("generate", "--like", "one.png", "--out", "two.png")[0] == 0
    assert record(home / "one.png") == record(home / "two.png")


def test_names_of_loras_and_embeddings(home: Path, call: Any, refused: Any) -> None:
    words = ("generate", "a My-Frog <lora:ink:0.5>", "--lora", "paint:0.25", "--out", "a.png")
    assert call(*words)[0] == 0
    made = record(home / "a.png")
    assert made["loras"] == [["loras/paint.safetensors", 0.25, 0.25]]
    assert made["embeddings"] == ["words/my-frog.safetensors"]
    assert made["lora_folder"] == "loras"
    assert call("generate", "a my-frogs", "--out", "b.png")[0] == 0
    assert record(home / "b.png")["embeddings"] == []
    assert "nearest first: ink, paint" in refused("generate", "<lora:in>")  # not completed
    assert "nop does not exist; unknown LoRA" in refused("generate", "x", "--lora", "nop")
    assert "unknown embedding" in refused("generate", "x", "--embedding", "nop")
    assert "unknown model" in refused("generate", "x", "--refiner", "nop")


def test_names_of_models(home: Path, refused: Any, call: Any) -> None:
    own = load_settings().settings
    big = Path("models/xl/Big-Model.safetensors")
    for name in ("Big-Model", "big", "xl/Big-Model", "xl\\big", "Big-Model.safetensors", str(big)):
        assert own.path_of("models", name) == big
    said = refused("generate", "x", "--model", "sd")
    assert "there are 2 models named 'sd' in models: sd15.safetensors, sd21.safetensors" in said
    assert "nearest first: sd15, sd21, Big-Model" in refused("generate", "x", "--model", "sd16")
    assert "models/sd15.safetensors" in call("info", "sd15")[1]
    assert own.folder("models").names() == ["sd15", "sd21", "Big-Model"]


def test_folders_of_models(tmp_path: Path) -> None:
    for name in ("a/x.safetensors", "b/x.ckpt", ".hidden/y.pt", "c/notes.txt", "z.PTH"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dif" / "unet").mkdir(parents=True)
    (tmp_path / "dif" / "model_index.json").touch()
    (tmp_path / "dif" / "unet" / "weights.safetensors").touch()
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "gone.pt").symlink_to(tmp_path / "nowhere")
    folder = Folder(tmp_path, "model")
    assert sorted(folder.names()) == ["a/x", "b/x", "dif", "z"]
    assert folder.find("dif") == tmp_path / "dif"
    with pytest.raises(ValueError, match=r"2 models named 'x' in .*: a/x.safetensors, b/x.ckpt"):
        folder.find("x")
    with pytest.raises(ValueError, match="unknown model"):
        folder.find("", complete=True)


BAD_FILES = {
    'modle = "x"': "unknown setting 'modle'; nearest: model, models",
    "model = 3": "model must be text, got 3",
    "model = ''": "model: it must not be empty",
    "model = ": "is not valid TOML: Invalid value",
    "defaults = 3": "defaults must be a table of tables, got 3",
    "[defaults]\nsteps = 3": 'defaults.steps must be a table, such as [defaults."steps"], got 3',
    "[defaults.x]\nnegative = 'a'": "unknown setting 'negative'; the field of --negative is negative_pr",
    "[defaults.x]\nsize = '64x64'": "unknown setting 'size'; the fields of --size are width and height",
    "[defaults.x]\nguidance = true": "defaults.x: guidance: it must not be true or false, got true",
    "[defaults.x]\nloras = [1]": "defaults.x: loras",
    "models = 3": "models: it must be a path, such as '~/pictures', got 3",
    "outputs = ' '": "outputs: it must be a path, such as '~/pictures', got ' '",
    "[defaults.x]\nsteps = 0": "defaults.x: steps must be between 1 and 1000, got 0",
    "[defaults.x]\nsampler = 'eulr'": "defaults.x: unknown sampler 'eulr'; choices, nearest",
    "name = '{sed}'": "unknown field of name 'sed'; choices, nearest first: seed",
    "models = '~nobody-of-that-name/x'": "models: ~nobody-of-that-name/x",
    "a = " + "[" * 10_000: "is not valid TOML",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=lambda text: text[:20])
def test_a_wrong_file(text: str, home: Path, refused: Any) -> None:
    write(home, text)
    said = refused("config")
    assert said.startswith(f"pellucid: {home / 'config.toml'}") and BAD_FILES[text] in said


def test_a_file_that_cannot_be_read(
    home: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = {
        "nowhere": "nowhere cannot be read: No such file",
        "models": "models cannot be read: Is a directory",
        "/dev/zero": "/dev/zero is too large: more than 64 MB",
    }
    for name, why in unreadable.items():
        monkeypatch.setenv("PELLUCID_CONFIG", name)
        assert why in refused("config")


def test_variables(call: Any, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_SERVICE_HOST", "10.0.0.1")  # of Kubernetes
    status, _, err = call("config")
    assert status == 0 and "PELLUCID_SERVICE_HOST is not a setting" in err
    monkeypatch.setenv("PELLUCID_MODLE", "x")
    assert "PELLUCID_MODLE is not known; PELLUCID_MODEL is" in refused("config")
    monkeypatch.delenv("PELLUCID_MODLE")
    monkeypatch.setenv("PELLUCID_NAME", "{x}")
    assert "PELLUCID_NAME: unknown field of name 'x'" in refused("config")
    monkeypatch.setenv("PELLUCID_NAME", "{seed}")
    monkeypatch.setenv("PELLUCID_DEFAULTS", "x")
    assert "PELLUCID_DEFAULTS cannot be a variable; [defaults] is a table of " in refused("config")
    monkeypatch.delenv("PELLUCID_DEFAULTS")
    monkeypatch.setenv("PELLUCID_SERVE_PORT", "80")
    status, out, err = call("config")
    assert status == 0 and "PELLUCID_SERVE_PORT" not in err and "serve" not in out
    monkeypatch.setenv("PELLUCID_SERVE_EMBEDDINGS", "x")  # like PELLUCID_EMBEDDINGS
    assert call("config")[0] == 0
    monkeypatch.setenv("PELLUCID_MODELS", "/dev/null")
    said = refused("generate", "x", "--model", "none")
    assert "a name in /dev/null, which is not a folder" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("port = 99999", "port must be between 0 and 65535, got 99999"),
        ("prot = 80", "prot"),
        ("backend = 'fats'", "unknown backend 'fats'"),
        ("log = 'xml'", "log must be"),
    ],
)
def test_a_wrong_setting_of_serve(line: str, said: str, home: Path, refused: Any) -> None:
    """Also said by `config`, and not only when the server starts."""
    write(home, f"[serve]\n{line}\n")
    for command in (("config",), ("config", "--json")):
        error = refused(*command)
        assert said in error and "config.toml: serve: " in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("preset = 'lmc'", "preset: unknown preset 'lmc'; choices, nearest first: lcm"),
        ("prediction = 'w'", "prediction: unknown prediction 'w'"),
        ("vae = 'none'", "vae: none does not exist"),
        ("loras = ['paint', 'none']", "loras: none does not exist"),
        ("refiner = 'none'", "refiner: none does not exist"),
    ],
)
def test_names_that_are_not_there(line: str, said: str, home: Path, call: Any) -> None:
    """`config` says what a command with this model would refuse."""
    write(home, f"model = 'gone'\nmodels = 'models'\nloras = 'loras'\n[defaults.sd15]\n{line}\n")
    status, _, err = call("config")
    assert status == 0 and "model: gone does not exist" in err
    assert f"defaults.sd15: {said}" in err


def test_the_table_of_serve_is_shown(home: Path, call: Any) -> None:
    write(home, "[serve]\nport = 80\n\n[defaults.x]\nloras = ['a', ['b', 0.5]]")
    out = call("config")[1]
    assert "serve: port 80" in out
    assert 'defaults of x: loras [["a", 1.0, 1.0], ["b", 0.5, 0.5]]' in out


# ---------------------------------------------------------------- names of pictures


def test_patterns(home: Path, call: Any, refused: Any) -> None:
    words = ("generate", "A Cat!", "--count", 2, "--seed", 7, "--out", "pics")
    status, out, _ = call(*words, "--name", "{model}/{steps}-{guidance}/{seed}")
    assert status == 0 and out == "pics/tiny/2-2.5/7.png\npics/tiny/2-2.5/8.png\n"
    assert call(*words, "--name", "one")[1] == "pics/one.png\npics/one-2.png\n"
    assert "--name is for a folder" in refused("generate", "x", "--name", "a", "--out", "x.png")


NOW = datetime(2026, 11, 30, 4, 5, 6)


@pytest.mark.parametrize(
    ("pattern", "prompt", "name"),
    [
        ("{prompt}-{seed}", "A red, RED cat.", "a-red-red-cat-7"),
        ("{prompt}-{seed}", "", "unconditional-7"),
        ("{prompt}-{seed}", "../../etc/passwd", "etc-passwd-7"),
        ("{date}/{time}-{prompt}", "x", "2026-11-30/04-05-06-x"),
        ("{prompt}", "con", "con_"),
        ("{prompt}", "x" * 500, "x" * 60),
        ("{prompt}", "ü" * 500, "ü" * 60),
        ("{prompt}" * 5, "x" * 60, "x" * 200),
        ("{sampler}/{seed}", "x", "picture/7"),  # a record without it
        (".{seed}", "x", "7"),
    ],
)
def test_names(pattern: str, prompt: str, name: str) -> None:
    assert name_for({"prompt": prompt, "seed": 7}, checked(pattern), NOW) == name


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "/x", "../x", "a/../b", "a//b", "a/", "./a", "{", "{x}", "{seed.x}", "{seed!r}"),
        *("{seed:9}", "{}", "{0}", "a\\b", "a:b", "a\0b", "{seed}.png", "con*"),
    ],
)
def test_wrong_patterns(pattern: str) -> None:
    with pytest.raises(ValueError, match="name"):
        checked(pattern)


def test_values_from_files_do_not_lead_out_of_the_folder() -> None:
    evil = dict.fromkeys(FIELDS, "../../x\0\x1b[2J")
    for field in FIELDS:
        made = name_for(evil, f"a/{{{field}}}")
        assert made.count("/") == 1 and ".." not in made.split("/") and made.isprintable()


# ---------------------------------------------------------------- completion by a shell


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("pellucid generate --model B", ["Big-Model"]),
        ("pellucid generate --model s", ["sd15", "sd21"]),
        ("pellucid generate --sampler dpm2", ["dpm2", "dpm2_ancestral"]),
        ("pellucid generate --lora p", ["paint"]),
        ("pellucid generate --fill n", ["noise"]),
        ("pellucid generate --noise p", ["pyramid", "pink"]),
        ("pellucid generate --preset light", ["lightning_2", "lightning", "lightning_8"]),
        ("pellucid upscale --dtype f", ["float32", "float16"]),
        ("pellucid generate --backend open", ["openvino", "openvino_int8"]),
        ("pellucid generate --spacing align", ["align_your_steps", "align_your_steps_xl"]),
    ],
)
def test_completion(
    words: str, found: list[str], home: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_PELLUCID_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert call()[1].split() == found


def test_the_default_folders_are_those_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", "/data")
        monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
        monkeypatch.delenv("PELLUCID_CONFIG")
        found = load_settings({})
        assert found.settings.models == Path("/data/pellucid/models")
        assert found.file == Path("/config/pellucid/config.toml")
    assert load_settings({"PELLUCID_CONFIG": os.devnull}).settings == Settings()
