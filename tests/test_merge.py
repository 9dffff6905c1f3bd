"""`pellucid merge`: compared with the sums computed by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid import checkpoints
from pellucid.checkpoints import MergeRecipe, tokenizer_files
from pellucid.checkpoints.formats import ldm
from pellucid.progress import _stages
from pellucid.tokenizer import Tokenizer
from references import model_of

PREFIXES = {
    "backbone": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Three models of SD1 with other weights, and one of SD2 and SDXL, in the original layout."""
    folder = tmp_path_factory.mktemp("merge")
    tokenizer = Tokenizer.from_table(
        {"a": 0, "!": 1, "<|startoftext|>": 49406, "<|endoftext|>": 49407}, []
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
    found = {}
    for name in ("sd1", "sd2", "sdxl"):
        found[name] = folder / f"{name}.safetensors"
        ldm.write(model_of(name, vocabulary=49408, layers_per_block=1), found[name])
    for number in (2, 3):
        generator = torch.Generator().manual_seed(number)
        weights = {
            key: weight + 0.1 * torch.randn(weight.shape, generator=generator)
            for key, weight in load_file(found["sd1"]).items()
        }
        found[f"sd1-{number}"] = folder / f"sd1-{number}.safetensors"
        save_file(weights, found[f"sd1-{number}"])
    yield found
    patch.undo()


def three(files: dict[str, Path]) -> list[Path]:
    return [files["sd1"], files["sd1-2"], files["sd1-3"]]


def assert_sum(path: Path, terms: dict[str, list[tuple[float, Path]]]) -> None:
    """Every tensor of the file is this sum: by the group of its part, or "" for all."""
    merged = load_file(path)
    loaded: dict[Path, dict[str, Tensor]] = {}
    for key, weight in merged.items():
        group = next((g for g, prefix in PREFIXES.items() if key.startswith(prefix)), "")
        expected = torch.zeros_like(weight, dtype=torch.float64)
        for factor, file in terms.get(group, terms.get("", [])):
            if file not in loaded:
                loaded[file] = load_file(file)
            expected += factor * loaded[file][key].double()
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_a_weighted_sum_of_two(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    a, b, _ = three(files)
    out = tmp_path / "new" / "m.safetensors"
    assert call("merge", a, b, "--out", out, "--share", "0.3") == (0, f"{out}\n", "")
    assert load_file(out).keys() == load_file(a).keys()
    assert_sum(out, {"": [(0.7, a), (0.3, b)]})
    recipe = json.loads(metadata(out)["pellucid_merge"])
    assert recipe["method"] == "sum"
    assert recipe["shares"] == {"backbone": [0.3], "text": [0.3], "vae": [0.3]}
    assert [m["sha256"] for m in recipe["models"]] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in (a, b)
    ]
    assert [m["path"] for m in recipe["models"]] == ["sd1.safetensors", "sd1-2.safetensors"]
    assert metadata(out)["modelspec.prediction_type"] == "epsilon"
    assert checkpoints.describe(out)["merged"] == (
        "sum of sd1.safetensors, sd1-2.safetensors; shares: backbone 0.3; text 0.3; vae 0.3"
    )


@pytest.mark.parametrize(("share", "whole"), [("0", "sd1"), ("1", "sd1-2")])
def test_all_of_one_model_is_that_model(
    files: dict[str, Path], call: Any, tmp_path: Path, share: str, whole: str
) -> None:
    out = tmp_path / "m.safetensors"
    assert call("merge", *three(files)[:2], "--out", out, "--share", share)[0] == 0
    merged, expected = load_file(out), load_file(files[whole])
    assert all(torch.equal(merged[key], expected[key]) for key in merged)


def test_three_models_and_shares_of_parts(
    files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    a, b, c = three(files)
    out = tmp_path / "m.safetensors"
    words = ["merge", a, b, c, "--out", out, "--share", "0.2,0.3", "--part", "text=0,0"]
    assert call(*words, "--part", "vae=0,1")[0] == 0
    rest = [(0.5, a), (0.2, b), (0.3, c)]
    assert_sum(out, {"backbone": rest, "text": [(1, a)], "vae": [(1, c)]})


def test_a_difference_is_added(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    a, b, c = three(files)
    out = tmp_path / "m.safetensors"
    words = ["merge", a, b, c, "--method", "difference", "--share", "0.8", "--out", out]
    assert call(*words, "--part", "vae=0")[0] == 0
    assert_sum(out, {"": [(1, a), (0.8, b), (-0.8, c)], "vae": [(1, a)]})


def test_an_inpainting_model_of_a_finetuned_one(
    files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    """Inpainting + (finetuned - base), the usual recipe: the channels of the mask stay."""
    a, b, c = three(files)
    key, weights = "model.diffusion_model.input_blocks.0.0.weight", load_file(a)
    mask = torch.randn(weights[key].shape[0], 5, 3, 3)
    inpainting, out = tmp_path / "inpainting.safetensors", tmp_path / "m.safetensors"
    save_file(weights | {key: torch.cat([weights[key], mask], dim=1)}, inpainting)
    words = ["merge", inpainting, b, c, "--method", "difference", "--share", "1", "--out", out]
    status, _, err = call(*words)
    assert status == 0 and "takes 4 channels and not 9" in err
    merged, (second, third) = load_file(out), (load_file(path)[key] for path in (b, c))
    torch.testing.assert_close(merged[key][:, :4], weights[key] + second - third)
    assert torch.equal(merged[key][:, 4:], mask)
    assert checkpoints.describe(out)["family"] == "Stable Diffusion 1 inpainting"
    status, _, err = call("merge", b, inpainting, "--out", tmp_path / "n.safetensors")
    assert status == 2 and "must be the first" in err


def test_weights_in_8_bits(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    a, b, _ = three(files)
    small = {key: weight.to(torch.float8_e4m3fn) for key, weight in load_file(a).items()}
    save_file(small, tmp_path / "small.safetensors")
    out = tmp_path / "m.safetensors"
    assert call("merge", tmp_path / "small.safetensors", b, "--share", "0", "--out", out)[0] == 0
    merged = load_file(out)
    assert all(torch.equal(merged[key].float(), small[key].float()) for key in small)


INDEX = "model.safetensors.index.json"


def sharded(file: Path, folder: Path) -> None:
    """The tensors of a file in two, with an index."""
    folder.mkdir()
    tensors = list(load_file(file).items())
    half = len(tensors) // 2
    parts = {"one.safetensors": tensors[:half], "two.safetensors": tensors[half:]}
    for name, some in parts.items():
        save_file(dict(some), folder / name)
    weight_map = {key: name for name, some in parts.items() for key, _ in some}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_layouts_and_number_types(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """A is decisive: a single file in its layout, each weight in its type."""
    a, b, _ = three(files)
    folder, native, half = tmp_path / "folder", tmp_path / "native.safetensors", tmp_path / "half"
    assert call("convert", b, folder, "--to", "diffusers")[0] == 0
    assert call("convert", a, native, "--to", "native")[0] == 0
    assert call("convert", a, half, "--to", "ldm", "--dtype", "fp16")[0] == 0
    out = tmp_path / "half-and-folder.safetensors"
    assert call("merge", half, folder, "--out", out, "--share", "0.25")[0] == 0
    assert {weight.dtype for weight in load_file(out).values()} == {torch.float16}
    halves, others = load_file(half), load_file(b)
    for key, weight in load_file(out).items():
        assert torch.equal(weight, (0.75 * halves[key].float() + 0.25 * others[key]).half()), key
    out = tmp_path / "folder-and-half.safetensors"
    assert call("merge", folder, half, "--out", out, "--share", "0.75")[0] == 0
    assert checkpoints.describe(out)["format"] == "ldm"
    merged = load_file(out)
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    for key, weight in merged.items():
        expected = 0.25 * others[key] + 0.75 * halves[key].float()
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
    recipe = json.loads(metadata(out)["pellucid_merge"])
    assert set(recipe["models"][0]["sha256"]) == {
        *("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
        "text_encoder/model.safetensors",
    }
    sharded(b, tmp_path / "parts")
    out = tmp_path / "index.safetensors"
    assert call("merge", a, tmp_path / "parts" / INDEX, "--out", out)[0] == 0
    recipe = json.loads(metadata(out)["pellucid_merge"])
    assert recipe["models"][1]["sha256"] == {
        name: hashlib.sha256((tmp_path / "parts" / name).read_bytes()).hexdigest()
        for name in ("one.safetensors", "two.safetensors")
    }
    out = tmp_path / "native-and-ldm.safetensors"
    assert call("merge", native, b, "--out", out)[0] == 0
    assert checkpoints.describe(out)["format"] == "native"
    both = checkpoints.load(out)
    one, other = checkpoints.load(native), checkpoints.load(b)
    key = "conv_in.weight"
    first, second = (m.backbone.state_dict()[key] for m in (one, other))
    torch.testing.assert_close(both.backbone.state_dict()[key], (first + second) / 2)


def test_only_one_tensor_of_each_model_is_held(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weight is read before the first byte is written, and each is read once."""
    read: list[str] = []
    merging = "pellucid.checkpoints.merging._read"
    from pellucid.checkpoints.merging import _read

    def watched(part: Any, name: str, kind: torch.dtype) -> Tensor:
        read.append(name)
        current = _stages.get()
        assert current is not None and current[0].what == "writing m.safetensors"
        return _read(part, name, kind)

    monkeypatch.setattr(merging, watched)
    from pellucid.progress import followed

    with followed():
        checkpoints.merge(
            three(files)[:2], tmp_path / "m.safetensors", MergeRecipe(2, "sum", (0.5,))
        )
    model = checkpoints.load(files["sd1"], "meta", None)
    parts = (model.backbone, model.vae, model.text)
    assert len(read) == 2 * sum(len(part.state_dict()) for part in parts)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sd1"], "method sum merges 2 or 3 models, got 1"),
        (["sd1", "sd1-2", "sd1-3", "sd1"], "method sum merges 2 or 3 models, got 4"),
        (["sd1", "sd1-2", "--method", "difference"], "method difference merges 3 models, got 2"),
        (["sd1", "sd1-2", "--method", "mean"], "unknown method 'mean'"),
        (["sd1", "sd1-2", "--share", "1.5"], "share must be between 0 and 1, got 1.5"),
        (["sd1", "sd1-2", "--share", "nan"], "share must be between 0 and 1, got nan"),
        (["sd1", "sd1-2", "sd1-3", "--share", "0.5"], "share must be 2 numbers with a comma"),
        (["sd1", "sd1-2", "sd1-3", "--share", "0.7,0.6"], "in all at most 1, got 0.7,0.6"),
        (["sd1", "sd1-2", "--share", "half"], "--share must be numbers with commas, got 'half'"),
        (["sd1", "sd1-2", "--part", "unet=1"], "unknown part 'unet'"),
        (["sd1", "sd1-2", "--part", "vae=0", "--part", "vae=1"], "--part vae is given twice"),
        (["sd1", "sd1-2", "--part", "vae"], "--part must be NAME=SHARE, such as vae=0"),
        (["sd1", "sd2"], "sd1.safetensors is Stable Diffusion 1"),
        (["sdxl", "sd1-2"], "only models of one family can be merged"),
        (["sd1", "none"], "none"),
    ],
)
def test_what_cannot_be_merged(
    files: dict[str, Path], call: Any, tmp_path: Path, words: list[str], said: str
) -> None:
    named = [files.get(word, word) for word in words]
    status, out, err = call(
        "merge", *named, "--prediction", "eps", "--out", tmp_path / "m.safetensors"
    )
    assert (status, out) == (2, "") and said in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_weights_of_another_shape_and_weights_that_are_missing(
    files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    wide = tmp_path / "wide.safetensors"
    ldm.write(model_of("sd1", vocabulary=49408, layers_per_block=1, in_channels=9), wide)
    status, _, err = call("merge", files["sd1"], wide, "--out", out)
    assert status == 2 and "Stable Diffusion 1" in err and "inpainting" in err
    words = tmp_path / "words.safetensors"
    weights = load_file(files["sd1"])
    key = next(key for key in weights if key.endswith("token_embedding.weight"))
    weights[key] = torch.cat([weights[key], weights[key][:1]])
    save_file(weights, words)
    status, _, err = call("merge", files["sd1"], words, "--out", out)
    assert status == 2 and "words.safetensors: text." in err and "has the shape (49409, 64)" in err
    short = tmp_path / "short.safetensors"
    weights = load_file(files["sd1"])
    del weights["model.diffusion_model.input_blocks.0.0.bias"]
    save_file(weights, short)
    status, _, err = call("merge", files["sd1"], short, "--out", out)
    assert status == 2 and "1 missing: model.diffusion_model.input_blocks.0.0.bias" in err
    assert not out.exists()


def test_a_model_without_an_autoencoder(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """As many files of finetuned models are."""
    a, b, _ = three(files)
    out, bare = tmp_path / "m.safetensors", tmp_path / "bare.safetensors"
    save_file({k: w for k, w in load_file(b).items() if not k.startswith("first_stage")}, bare)
    status, _, err = call("merge", a, bare, "--out", out)
    assert status == 0 and "bare.safetensors has no vae; the merged model has that of" in err
    assert_sum(out, {"": [(0.5, a), (0.5, b)], "vae": [(1, a)]})
    status, _, err = call("merge", bare, a, "--out", out, "--overwrite")
    assert status == 2 and "without its autoencoder" in err
    assert call("merge", bare, a, "--out", out, "--overwrite", "--vae", a)[0] == 0
    assert_sum(out, {"": [(0.5, a), (0.5, b)], "vae": [(1, a)]})


def test_a_file_that_exists_is_not_replaced_in_silence(
    files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    a, b, _ = three(files)
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"mine")
    status, _, err = call("merge", a, b, "--out", out)
    assert status == 2 and "--overwrite replaces it" in err and out.read_bytes() == b"mine"
    assert call("merge", a, b, "--out", out, "--overwrite")[0] == 0
    before = load_file(a)
    mine = tmp_path / "a.safetensors"
    mine.write_bytes(a.read_bytes())
    assert call("merge", mine, b, "--out", mine, "--overwrite")[0] == 0  # into itself
    key = "model.diffusion_model.input_blocks.0.0.bias"
    torch.testing.assert_close(load_file(mine)[key], (before[key] + load_file(b)[key]) / 2)
    status, _, err = call("merge", a, b, "--out", tmp_path / "m.ckpt")
    assert status == 2 and "--out must be a file that ends in .safetensors" in err


def test_models_with_other_predictions_are_said(
    files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    b = tmp_path / "v.safetensors"
    save_file({**load_file(files["sd1-2"]), "v_pred": torch.empty(0)}, b)
    status, _, err = call("merge", files["sd1"], b, "--out", tmp_path / "m.safetensors")
    assert status == 0 and "sd1.safetensors predicts eps and" in err and "v.safetensors v;" in err
