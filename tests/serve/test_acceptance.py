"""What is decided before a job waits: as the run would decide it, without any weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sending import png

from pellucid import checkpoints, preview
from pellucid.cli._recorded_paths import KINDS
from pellucid.model import Model
from pellucid.request import Request
from pellucid.request.fields import PICTURES, declared, file_fields, option
from pellucid.serve.acceptance import Acceptance, Asked
from pellucid.serve.apis.openai import OWN
from pellucid.serve.capabilities import capabilities
from pellucid.serve.configuration import Configuration
from pellucid.serve.library import Library
from pellucid.serve.picture_pages import PAGES
from pellucid.serve.pictures import PictureStore
from pellucid.settings import Settings
from pellucid.tiny_vae import TinyVAE, TinyVAEConfig
from pellucid.vae import VAE


@pytest.fixture
def accepting(model: Model, model_file: Path, tmp_path: Path) -> Acceptance:
    """With the tests' model "first", "same" with the same latents, "other" with others."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("first", "same"):
        (folder / f"{name}.safetensors").write_bytes(model_file.read_bytes())
    vae = VAE(replace(model.vae.config, scaling_factor=0.5))
    checkpoints.save(replace(model, vae=vae), folder / "other.safetensors")
    configuration = Configuration(data=tmp_path, models=(folder,), model="first")
    return Acceptance(configuration, Library((folder,)), PictureStore(tmp_path / "pictures"))


def test_a_tiny_decoder_next_to_the_model_is_known(
    accepting: Acceptance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "QUICK_PARAMETERS", 0)
    asked = Asked(Request(prompt="a rabbit", decoder="tiny"))

    def has_decoder() -> bool:
        able = capabilities(accepting.library.model("first").outline, accepting.limits)
        return "decoder" in [field["name"] for field in able["fields"]]

    with pytest.raises(ValueError, match="has no tiny autoencoder"):
        accepting.job(asked)
    assert not has_decoder()
    save_file(
        TinyVAE(TinyVAEConfig()).state_dict(), tmp_path / "models" / "taesd_decoder.safetensors"
    )
    again = Library((tmp_path / "models",))
    accepting = Acceptance(accepting.limits, again, accepting.pictures)
    assert accepting.job(asked).resolved["decoder"] == "tiny"
    assert has_decoder()


def test_a_refiner_is_checked_before_the_job_waits(accepting: Acceptance) -> None:
    with pytest.raises(ValueError, match="has other latents than"):
        accepting.job(Asked(Request(prompt="a rabbit", refiner="other")))
    assert (
        accepting.job(Asked(Request(prompt="a rabbit", refiner="same", refiner_at=0.5))).warnings
        == []
    )
    late = accepting.job(Asked(Request(prompt="a rabbit", refiner="same", refiner_at=1.0)))
    assert any("gives the refiner no steps" in warning for warning in late.warnings)


def test_an_explanation_is_without_the_refiner(accepting: Acceptance) -> None:
    refined = Request(prompt="a rabbit", refiner="same", refiner_at=0.5)
    job = accepting.job(Asked(refined, kind="explain", versus=refined))
    assert accepting.task(job).refiner is None
    for request in (job.request, job.options["versus"]):
        assert not request.keys() & {"refiner", "refiner_at"}
    assert job.warnings == ["refiner does nothing: only the steps of first are explained"]


def test_the_page_of_clip_is_that_of_the_command(
    model: Model, model_file: Path, tmp_path: Path, call: Any
) -> None:
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    image.save(tmp_path / "picture", "PNG")
    words = ["clip", tmp_path / "picture", "--text", "a rabbit", "--model", model_file]
    assert call(*words, "--out", tmp_path / "page.html")[0] == 0
    made = PAGES["clip"](checkpoints.load(model_file), image, Request(prompt="a rabbit"))
    assert made == (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("mask", "more", "said"),
    [
        (Image.new("L", (8, 16), "white"), {}, "the mask is 8x16 and the picture is 16x16"),
        (Image.new("L", (16, 16)), {}, "the mask is empty"),
        (
            Image.new("L", (16, 16), "white"),
            {"extend": (4096, 4096, 4096, 4096), "width": 16, "height": 16},
            "at most 40,000,000 pixels on this server, got 67,371,264",
        ),
    ],
)
def test_a_mask_is_checked_before_the_job_waits(
    accepting: Acceptance, mask: Image.Image, more: dict[str, Any], said: str
) -> None:
    names = [
        accepting.pictures.add(png(each)) for each in (Image.new("RGB", (16, 16), "red"), mask)
    ]
    request = Request(prompt="a rabbit", image=names[0], mask=names[1]).model_copy(update=more)
    with pytest.raises(ValueError, match=said) as caught:
        accepting.job(Asked(request))
    assert str(accepting.pictures.folder) not in str(caught.value)


class WithVoice(Request):
    """A request with one more field that names files, of a kind that no server has."""

    voice: str | None = option("A voice.", form="FILE", files="voices")
    others: tuple[tuple[str, float], ...] = option("More models.", (), form="FILE", files="models")


def test_a_new_field_of_files_is_not_open_to_clients(accepting: Acceptance) -> None:
    assert file_fields(WithVoice) == file_fields(Request) | {"voice": "voices", "others": "models"}
    with pytest.raises(ValueError, match="voice must not be given on this server"):
        accepting.located(WithVoice(voice="/etc/passwd"))
    with pytest.raises(ValueError, match="unknown model '/etc/passwd'"):
        accepting.located(WithVoice(others=(("first", 1.0), ("/etc/passwd", 1.0))))
    found = accepting.located(WithVoice(others=(("first", 0.5),)))
    assert isinstance(found, WithVoice)
    assert found.others == ((str(accepting.library.model("first").path), 0.5),)


def test_fields_of_files_are_the_same_everywhere() -> None:
    files = file_fields(Request)
    assert set(files) == {"image", "mask", "loras", "embeddings", "refiner", "hires_upscaler"}
    assert {name for name in Request.model_fields if "FILE" in declared(Request, name)["form"]} | {
        "hires_upscaler"
    } == set(files)
    assert OWN & set(files) == {"hires_upscaler"}
    assert files.items() <= {name: kind or PICTURES for name, kind in KINDS.items()}.items()
    folders = set(files.values()) - {PICTURES}
    assert folders <= set(Settings.model_fields)


def test_capabilities_build_the_schema_once(
    accepting: Acceptance, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = [], Request.model_json_schema
    monkeypatch.setattr(Request, "model_json_schema", lambda: made.append(1) or real())
    able = capabilities(accepting.library.model("first").outline, accepting.limits)
    assert len(made) == 1 and len(able["fields"]) > 30


def test_the_word_of_an_embedding_is_known(model: Model, tmp_path: Path) -> None:
    for folder in ("models", "embeddings"):
        (tmp_path / folder).mkdir()
    lexicon = checkpoints.load(checkpoints.embedded(), "meta").lexicon
    checkpoints.save(replace(model, lexicon=lexicon), tmp_path / "models" / "first.safetensors")
    for name, width in (("qwzx", model.text.config.width), ("large", 5)):
        vectors = {"emb_params": torch.zeros(2, width)}
        save_file(vectors, tmp_path / "embeddings" / f"{name}.safetensors")
    configuration = Configuration(data=tmp_path, model="first")
    library = Library((tmp_path / "models",), embeddings=tmp_path / "embeddings")
    accepting = Acceptance(configuration, library, PictureStore(tmp_path / "pictures"))
    unknown = accepting.job(Asked(Request(prompt="qwzy")))
    assert "has not learned the word 'qwzy'" in unknown.warnings[0]
    named = accepting.job(Asked(Request(prompt="QWZX")))
    assert (named.warnings, named.request["embeddings"]) == ([], ["qwzx"])
    assert accepting.task(named).request.embeddings == (str(library.embedding("qwzx")),)
    asked = Request(prompt="qwzx", embeddings=("qwzx",))
    assert accepting.job(Asked(asked)).request["embeddings"] == ["qwzx"]
    both = Asked(Request(prompt="a square"), kind="explain", versus=Request(negative_prompt="qwzx"))
    assert accepting.job(both).options["versus"]["embeddings"] == ["qwzx"]
    read, request = accepting.read(library.model("first"), Request(prompt="qwzx"))
    assert len(read.tokenizer.encode(request.prompt)) == 2
    wrong = asked.model_copy(update={"embeddings": ("large",)})
    with pytest.raises(ValueError, match="large") as caught:
        accepting.job(Asked(wrong))
    assert str(tmp_path) not in str(caught.value)
