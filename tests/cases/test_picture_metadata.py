"""What pictures say of how they were made: by other programs, in every encoding, damaged or not."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from inputs import (
    FORMATS,
    USER_COMMENT,
    a1111_picture,
    exif,
    exif_type,
    hide,
    noisy,
    png_chunks,
    png_text,
)
from PIL import Image, PngImagePlugin

from pellucid import samplers
from pellucid.images.metadata import read_metadata

Info = Callable[..., Any]


@pytest.fixture
def info(call: Any) -> Info:
    """What `pellucid info PICTURE` says: as text, or with `--json` the whole of it."""

    def say(path: Path, *options: str) -> str:
        status, out, err = call("info", path, *options)
        assert status == 0, err
        if "--json" in options:
            return json.dumps(json.loads(out), ensure_ascii=False)
        return str(out)

    return say


SETTINGS = "Steps: 4, Sampler: Euler a, CFG scale: 2.5, Seed: 77, Size: 16x16"
INFOTEXT = f"a snowy cabin, dusk\nNegative prompt: blurry\n{SETTINGS}"
READ = {
    "prompt": "a snowy cabin, dusk",
    "negative_prompt": "blurry",
    "steps": 4,
    "guidance": 2.5,
    "seed": 77,
    "sampler": "euler_ancestral",
    "width": 16,
    "height": 16,
}


def has(request: dict[str, Any], **fields: Any) -> None:
    assert {name: request[name] for name in fields} == fields


# ---------------------------------------------------------------- 5: pictures of other programs

FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "guidance_scale": 2.5,
    "loras": [["offset", 0.1, "4852686128"]],
    "metadata_scheme": "fooocus",
    "negative_prompt": "blurry",
    "performance": "Speed",
    "prompt": "a snowy cabin, dusk",
    "resolution": "(16, 16)",
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "seed": "77",
    "sharpness": 2.0,
    "steps": 4,
    "styles": "['Fooocus V2']",
    "version": "Fooocus v2.5.0",
}
INVOKE = {
    "generation_mode": "txt2img",
    "positive_prompt": "a snowy cabin, dusk",
    "negative_prompt": "blurry",
    "width": 16,
    "height": 16,
    "seed": 77,
    "cfg_scale": 2.5,
    "steps": 4,
    "scheduler": "euler_a",
    "model": {"key": "1", "hash": "blake3:0", "name": "dreamshaper-8", "base": "sd-1"},
    "app_version": "4.2.7",
}
INVOKE_2 = {
    "model": "stable diffusion",
    "model_weights": "stable-diffusion-1.5",
    "app_id": "invoke-ai/InvokeAI",
    "app_version": "2.3.0",
    "image": {
        "prompt": [{"prompt": "a snowy cabin, dusk [blurry]", "weight": 1}],
        "steps": 4,
        "cfg_scale": 2.5,
        "width": 16,
        "height": 16,
        "seed": 77,
        "sampler": "k_euler_a",
        "type": "txt2img",
    },
}
NOVELAI = {
    "prompt": "a snowy cabin, dusk",
    "steps": 4,
    "height": 16,
    "width": 16,
    "scale": 2.5,
    "uncond_scale": 1.0,
    "cfg_rescale": 0.0,
    "seed": 77,
    "n_samples": 1,
    "sampler": "k_euler_ancestral",
    "uc": "blurry",
}

DRAW_THINGS = {
    "c": "a snowy cabin, dusk",
    "uc": "blurry",
    "model": "dreamshaper_v8_f16.ckpt",
    "sampler": "Euler A",
    "scale": 2.5,
    "seed": 77,
    "seed_mode": "Scale Alike",
    "shift": 1,
    "size": "16x16",
    "steps": 4,
    "strength": 1,
    "lora": [],
    "mask_blur": 1.5,
    "sharpness": 0,
    "v2": {"steps": 4, "hiresFix": False},
}


TENSORART = {
    "models": [],
    "prompt": "a snowy cabin, dusk",
    "negativePrompt": "blurry",
    "width": 16,
    "height": 16,
    "imageCount": 1,
    "samplerName": "Euler a",
    "steps": 4,
    "cfgScale": 2.5,
    "seed": "-1",
    "clipSkip": 1,
    "baseModel": {"label": "x", "type": "BASE_MODEL", "modelFileName": "dreamshaper_8"},
    "sdVae": "Automatic",
}
MOCHI = {
    "Date": "2024-01-01 10:00:00",
    "Include in Image": "a snowy cabin, dusk",
    "Exclude from Image": "blurry",
    "Model": "dreamshaper_8",
    "Size": "16x16",
    "Seed": "77",
    "Steps": "4",
    "Guidance Scale": "2.5",
    "Scheduler": "Euler a",
    "ML Compute Unit": "CPU & Neural Engine",
    "Upscaler": "",
    "Generator": "Mochi Diffusion 5.0",
}


def recorded(path: Path) -> dict[str, Any]:
    settings = read_metadata(path).settings
    assert settings is not None and settings.problem is None and not settings.unused
    return settings.fields


def test_a_prompt_of_mochi_with_its_separators(tmp_path: Path) -> None:
    """Version 1 does not escape what is between its fields, and version 2 escapes ends of lines."""
    text = "Include in Image: a cat; a hat: red; Model: x; Seed: 7; Scheduler: DPM-Solver++"
    fields = recorded(png_text(tmp_path / "a.png", Description=text))
    assert (fields["prompt"], fields["sampler"]) == ("a cat; a hat: red", "dpmpp_2m")
    text = "Metadata Version: 2\nInclude in Image: a; b\\\\c\\nd\nSeed: 7\nScheduler: PNDM"
    fields = recorded(png_text(tmp_path / "b.png", Description=text))
    assert (fields["prompt"], fields["sampler"]) == ("a; b\\c\nd", "plms")


def test_settings_under_other_names(tmp_path: Path) -> None:
    """SD.Next, reForge, Fooocus and SwarmUI."""
    for more, name, value in (
        ("CFG rescale: 0.7", "rescale", 0.7),
        ("CFG Rescale phi: 0.7", "rescale", 0.7),
        ("Scheduler: karras", "spacing", "karras"),
    ):
        path = png_text(tmp_path / "a.png", parameters=f"{INFOTEXT}, {more}")
        assert recorded(path)[name] == value
    swarm = {"prompt": "a", "model": "sub/x", "clipstopatlayer": -2, "seed": 1}
    fields = recorded(
        png_text(tmp_path / "a.png", parameters=json.dumps({"sui_image_params": swarm}))
    )
    assert (fields["model"], fields["clip_skip"]) == ("x", 2)


def xmp(comment: str) -> str:
    """An XMP packet as Draw Things writes it."""
    names = {"rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
    names |= {"exif": "http://ns.adobe.com/exif/1.0/", "xmp": "http://ns.adobe.com/xap/1.0/"}
    spaces = " ".join(f'xmlns:{name}="{place}"' for name, place in names.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 6.0.0">'
        f'<rdf:RDF {spaces}><rdf:Description rdf:about="">'
        "<xmp:CreatorTool>Draw Things</xmp:CreatorTool>"
        '<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">'
        f"{escape(comment)}</rdf:li></rdf:Alt></exif:UserComment>"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def comfy(**extra: Any) -> dict[str, Any]:
    """ComfyUI's graph of its first example, as the nodes refer to each other."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 77,
                "steps": 4,
                "cfg": 2.5,
                "sampler_name": "euler_ancestral",
                "scheduler": "karras",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["7", 0],
                "negative": ["6", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "dreamshaper_8.safetensors"},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16}},
        # The numbers do not say which is which: only the sampler's inputs do.
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
        "7": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "a snowy cabin, dusk", "clip": ["4", 1]},
        },
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    } | extra


def test_names_of_embeddings_in_a_graph(tmp_path: Path, info: Info) -> None:
    """ComfyUI names embeddings with `embedding:`; here the name alone is the word."""
    text = "a cabin, embedding:sub\\\\frida.safetensors (embedding:my-frog:1.2), Embedding:one.v2"
    node = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}}
    path = png_text(tmp_path / "a.png", prompt=json.dumps(comfy(**{"7": node})))
    assert "a cabin, frida (my-frog:1.2), one.v2" in info(path)


def civitai() -> dict[str, Any]:
    """A graph as Civitai writes it, with nodes of an extension and texts between the nodes."""
    graph = comfy(extra={"airs": ["urn:air:sd1:checkpoint:1"]}, extraMetadata='{"prompt": "x"}')
    for name, text in (("6", "blurry"), ("7", "a snowy cabin, dusk")):
        inputs = {"text": text, "parser": "A1111", "text_g": "", "text_l": "", "clip": ["4", 1]}
        graph[name] = {"class_type": "smZ CLIPTextEncode", "inputs": inputs}
    graph["3"]["inputs"]["denoise"] = "1"
    return graph


def with_exif(path: Path, comment: bytes = b"", **tags: str) -> Path:
    kind = {"jpg": "JPEG"}.get(path.suffix[1:], path.suffix[1:].upper())
    noisy().save(path, kind, exif=exif(comment or b"ASCII\0\0\0", **tags))
    return path


def made_by(name: str, folder: Path) -> Path:
    """A picture as this program writes it."""
    fooocus, graph = json.dumps(FOOOCUS), json.dumps(comfy())
    if name == "Fooocus":
        return png_text(folder / "a.png", parameters=fooocus, fooocus_scheme="fooocus")
    if name == "Fooocus JPEG":
        tags = {"x0131": "Fooocus v2.5.0"}
        return with_exif(folder / "a.jpg", b"UNICODE\0" + fooocus.encode("utf-16-be"), **tags)
    if name == "Fooocus WebP":
        comment = b"UNICODE\0" + fooocus.encode("utf-16-be")
        return with_exif(folder / "a.webp", comment, x0131="Fooocus v2.5.0")
    if name == "ComfyUI":
        return png_text(folder / "a.png", prompt=graph, workflow=json.dumps({"nodes": []}))
    if name == "ComfyUI WebP":  # SaveAnimatedWEBP
        tags = {"x0110": f"prompt:{graph}", "x010F": 'workflow:{"nodes": []}'}
        return with_exif(folder / "a.webp", **tags)
    if name == "InvokeAI":
        return png_text(folder / "a.png", invokeai_metadata=json.dumps(INVOKE))
    if name == "InvokeAI 2":
        return png_text(folder / "a.png", sd_metadata=json.dumps(INVOKE_2), Dream="a")
    if name == "ComfyUI APNG":  # SaveAnimatedPNG
        chunks = ((b"comf", b"prompt\0" + graph.encode()), (b"comf", b"workflow\0{}"))
        return png_chunks(folder / "a.png", *chunks)
    if name == "ComfyUI comment":  # as Civitai draws
        return a1111_picture(folder / "a.jpg", json.dumps(civitai()))
    if name.startswith("Mochi"):
        return mochi_picture(folder, name)
    if name == "Tensor.Art":
        data = json.dumps(TENSORART)
        return png_text(folder / "a.png", generation_data=data, prompt=graph)
    if name == "Fooocus fork":  # SimpleSDXL
        data = json.dumps({key.replace("_", " ").title(): v for key, v in FOOOCUS.items()})
        return png_text(folder / "a.png", Comment=data, fooocus_scheme="simple")
    if name.startswith("Draw Things"):
        return drawn_things(folder, name.removeprefix("Draw Things").strip())
    if name == "Easy Diffusion":
        words = {"prompt": "a snowy cabin, dusk", "negative_prompt": "blurry", "seed": "77"}
        words |= {"num_inference_steps": "4", "guidance_scale": "2.5", "sampler_name": "euler_a"}
        words |= {"width": "16", "height": "16", "use_vae_model": "None"}
        return png_text(folder / "a.png", **words)
    if name == "Easy Diffusion JPEG":
        numbers = {"prompt": "a snowy cabin, dusk", "negative_prompt": "blurry", "seed": 77}
        numbers |= {"num_inference_steps": 4, "guidance_scale": 2.5, "sampler_name": "euler_a"}
        numbers |= {"width": 16, "height": 16, "use_vae_model": None, "tiling": None}
        return a1111_picture(folder / "a.jpg", json.dumps(numbers))
    texts = {"Title": "NovelAI generated image", "Description": NOVELAI["prompt"]}
    texts |= {
        "Software": "NovelAI",
        "Source": "NovelAI Diffusion V3",
        "Comment": json.dumps(NOVELAI),
    }
    if name == "NovelAI":
        return png_text(folder / "a.png", **texts)  # type: ignore[arg-type]
    program, mark = name.split()[:2]
    path = folder / ("a.webp" if name.endswith("WebP") else "a.png")
    text = json.dumps(texts) if program == "NovelAI" else INFOTEXT
    return hide(path, text, f"stealth_{mark}", "RGBA" if mark.startswith("png") else "RGB")


def mochi_picture(folder: Path, kind: str) -> Path:
    """A picture of Mochi Diffusion; version 2 of its text has lines, and escapes in them."""
    pairs = dict(MOCHI)
    if kind == "Mochi 2":
        text = "\n".join(
            f"{key}: {value}" for key, value in ({"Metadata Version": 2} | pairs).items()
        )
    else:
        text = "; ".join(f"{key}: {value}" for key, value in pairs.items())
    if kind == "Mochi JPEG":
        caption = b"\x1c\x02\x78" + len(text).to_bytes(2, "big") + text.encode()
        block = b"8BIM\x04\x04\0\0" + len(caption).to_bytes(4, "big") + caption
        app13 = b"Photoshop 3.0\0" + block + b"\0" * (len(block) % 2)
        noisy().save(folder / "a.jpg", "JPEG")
        data = (folder / "a.jpg").read_bytes()
        segment = b"\xff\xed" + (len(app13) + 2).to_bytes(2, "big") + app13
        (folder / "a.jpg").write_bytes(data[:2] + segment + data[2:])
        return folder / "a.jpg"
    if kind == "Mochi XMP":
        packet = xmp(text).replace("exif:UserComment", "dc:description")
        spaced = packet.replace(
            "xmlns:exif", 'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:exif'
        )
        noisy().save(folder / "a.webp", "WEBP", xmp=spaced.encode())
        return folder / "a.webp"
    return png_text(folder / "a.png", Description=text)


def drawn_things(folder: Path, kind: str, **changes: Any) -> Path:
    """A picture of Draw Things: a PNG, or of another format."""
    text = json.dumps(DRAW_THINGS | changes)
    if kind == "EXIF":
        return with_exif(folder / "a.jpg", b"UNICODE\0" + text.encode("utf-16-be"))
    path = folder / f"a.{kind.lower() or 'png'}"
    if kind:
        noisy().save(path, kind, xmp=xmp(text).encode())
        return path
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(text))
    noisy().save(path, "PNG", pnginfo=info)
    return path


PROGRAMS = (
    *("Fooocus", "Fooocus JPEG", "Fooocus WebP", "ComfyUI", "ComfyUI WebP", "ComfyUI APNG"),
    *("ComfyUI comment", "InvokeAI", "InvokeAI 2", "NovelAI"),
    *("Easy Diffusion", "Easy Diffusion JPEG", "Tensor.Art", "Fooocus fork"),
    *("Mochi", "Mochi 2", "Mochi JPEG", "Mochi XMP"),
    *("Draw Things", "Draw Things JPEG", "Draw Things WEBP", "Draw Things EXIF"),
    *("NovelAI pngcomp", "NovelAI pngcomp WebP", "A1111 pnginfo", "A1111 rgbinfo", "A1111 rgbcomp"),
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_pictures_of_other_programs(name: str, tmp_path: Path, drawn: Any, info: Info) -> None:
    """Case 5: what can be read is used by `--like`, and `info` names the program."""
    path = made_by(name, tmp_path)
    request, _ = drawn("--like", path)
    has(request, **READ)
    assert name.split()[0] in info(path)
    if "Fooocus" in name or "Comfy" in name:
        assert request["spacing"] == "karras"


@pytest.mark.parametrize("damage", ["length", "gzip", "mark"])
def test_a_hidden_text_that_is_damaged(damage: str, tmp_path: Path, info: Info) -> None:
    """A picture that is cut, was changed, or has other bits there does not say what made it."""
    mark = "stealth_pngcomq" if damage == "mark" else "stealth_pngcomp"
    picture = Image.open(hide(tmp_path / "a.png", INFOTEXT, mark, "RGBA"))
    if damage == "length":
        picture = picture.crop((0, 0, 6, 40))
    elif damage == "gzip":
        picture.paste((0, 0, 0, 255), (5, 0, 6, 40))
    picture.save(tmp_path / "a.png")
    assert "no record" in info(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Fooocus", "juggernautXL_v8Rundiffusion"),
        ("ComfyUI", "dreamshaper_8"),
        ("InvokeAI", "dreamshaper-8"),
        ("NovelAI", "NovelAI Diffusion V3"),
        ("Draw Things", "dreamshaper_v8_f16.ckpt"),
    ],
)
def test_models_of_other_programs_are_named(
    name: str, weights: str, tmp_path: Path, info: Info, call: Any
) -> None:
    """Case 5: the name of a model is no file: it is said, and `--model` is asked for."""
    path = made_by(name, tmp_path)
    assert weights in info(path)
    status, _, err = call("generate", "--like", path, "--steps", 1, "--size", 64, "--out", tmp_path)
    assert status == 0 and weights in err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampler": "DPM++ 2M Trailing"}, {"sampler": "dpmpp_2m", "spacing": "trailing"}),
        ({"c": 'a "red" <hat> & {"c": 1}'}, {"prompt": 'a "red" <hat> & {"c": 1}'}),
        (
            {
                "hires_fix": True,
                "size": "24x24",
                "first_stage_size": "16x16",
                "second_stage_strength": 0.6,
            },
            {"width": 16, "height": 16, "hires": 1.5, "hires_strength": 0.6},
        ),
    ],
)
def test_settings_of_draw_things(
    changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path, drawn: Any
) -> None:
    request, err = drawn("--like", drawn_things(tmp_path, "", **changes))
    has(request, **expected)
    assert "do not exist here" not in err


def test_spacings_that_draw_things_has_in_names_of_samplers() -> None:
    assert samplers.resolve("DPM++ SDE AYS") == ("dpmpp_sde", "align_your_steps")
    assert samplers.resolve("UniPC Trailing") == ("unipc", "trailing")


HOSTILE_XMP = {
    "entities": '<!DOCTYPE x [<!ENTITY a "aaaa">]><x><UserComment>{"c": "&a;", "uc": ""}'
    "</UserComment></x>",
    "cut": xmp(json.dumps(DRAW_THINGS))[:-30],
    "not JSON": xmp("{c: 1}"),
    "nested": "<a>" * 50_000 + "UserComment",
}


@pytest.mark.parametrize("kind", HOSTILE_XMP)
def test_xmp_that_cannot_be_read(kind: str, tmp_path: Path, refused: Any, model_file: Path) -> None:
    path = tmp_path / "a.webp"
    noisy().save(path, "WEBP", xmp=HOSTILE_XMP[kind].encode())
    said = refused("generate", "--like", path, "--model", model_file, "--out", tmp_path)
    assert "does not say how it was made" in said


HARD: dict[str, dict[str, str]] = {
    "workflow alone": {"workflow": json.dumps({"nodes": [{"type": "KSampler"}]})},
    "unknown nodes": {
        "prompt": json.dumps({"1": {"class_type": "SomebodysSampler", "inputs": {"x": ["2", 0]}}})
    },
    "in a circle": {
        "prompt": json.dumps(
            comfy(
                **{
                    "6": {"class_type": "Reroute", "inputs": {"in": ["7", 0]}},
                    "7": {"class_type": "Reroute", "inputs": {"in": ["6", 0]}},
                }
            )
        )
    },
    "not JSON": {"prompt": "{", "workflow": "{"},
}


@pytest.mark.parametrize("kind", HARD)
def test_graphs_that_cannot_be_read(
    kind: str, tmp_path: Path, refused: Any, info: Info, model_file: Path
) -> None:
    """Case 5: then the program is named, and nothing is drawn in place of what was meant."""
    path = png_text(tmp_path / "a.png", **HARD[kind])
    said = refused("generate", "--like", path, "--model", model_file, "--out", tmp_path)
    assert "ComfyUI" in said and "ComfyUI" in info(path)


NO_PROMPT: dict[str, bytes] = {
    "screenshot": b"ASCII\0\0\0Screenshot",
    "blanks": b"ASCII\0\0\0" + b" " * 40,
    "zeros": bytes(48),
    "nothing": b"",
    "camera": b"ASCII\0\0\0charset=Ascii",
    "words": b"ASCII\0\0\0Our holiday in Bergen, 2019",
    "settings of a phone": b'ASCII\0\0\0{"mirror":false,"sensor_type":"rear","prompt":""}',
    "utf-16": b"UNICODE\0" + "Screenshot".encode("utf-16-be"),
}


@pytest.mark.parametrize("kind", NO_PROMPT)
def test_words_of_cameras_are_no_prompt(
    kind: str, tmp_path: Path, refused: Any, model_file: Path
) -> None:
    """Case 5: a comment that has no settings was not written by a program that draws."""
    path = with_exif(tmp_path / "photo.jpg", NO_PROMPT[kind] or b"\0" * 8)
    said = refused("generate", "--like", path, "--model", model_file, "--out", tmp_path)
    assert "photo.jpg" in said and "does not say" in said


@pytest.mark.parametrize("text", ['[{"prompt": "a hut"}]', '{"nodes": []}', ' [ {"x": 1}, 2]'])
def test_json_of_an_unknown_program_is_no_prompt(
    text: str, tmp_path: Path, refused: Any, model_file: Path
) -> None:
    """Case 5: a list of objects as well."""
    path = png_text(tmp_path / "a.png", parameters=text)
    said = refused("generate", "--like", path, "--model", model_file, "--out", tmp_path)
    assert "does not say" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a1111_s_text_in_every_format(kind: str, tmp_path: Path, drawn: Any, info: Info) -> None:
    """Case 5: the same from PNG, JPEG, WebP, AVIF and GIF."""
    path = a1111_picture(tmp_path / f"a.{kind}", INFOTEXT)
    has(drawn("--like", path)[0], **READ)
    assert "a snowy cabin, dusk" in info(path)


XMP_TEXT = xmp(INFOTEXT).replace("exif:UserComment", "xmp:description")
CONVERTED: dict[str, dict[str, Any]] = {
    "ImageDescription": {"exif": {0x010E: INFOTEXT}},
    "XPComment": {"exif": {0x9C9C: INFOTEXT.encode("utf-16-le")}},
    "XMP": {"xmp": XMP_TEXT.encode()},
    "comment of a JPEG": {"comment": INFOTEXT.encode()},
}


@pytest.mark.parametrize("where", [*CONVERTED, "Comment", "Description"])
def test_a1111_s_text_in_converted_pictures(where: str, tmp_path: Path, drawn: Any) -> None:
    """Case 5: where GIMP, Windows and programs that convert pictures keep the text."""
    path = tmp_path / "a.jpg"
    if where in CONVERTED:
        options = dict(CONVERTED[where])
        if "exif" in options:
            tags = Image.Exif()
            tags.update(options["exif"])
            options["exif"] = tags
        noisy().save(path, **options)
    else:
        path = png_text(tmp_path / "a.png", **{where: INFOTEXT})
    has(drawn("--like", path)[0], **READ)


@pytest.mark.parametrize("name", ["a.jpg", "a.dat", "a", "a.safetensors", "a.PNG"])
def test_a_picture_is_known_by_its_content(
    name: str, tmp_path: Path, drawn: Any, info: Info
) -> None:
    """Case 5: and not by the ending of its name, neither by `info` nor by `--like`."""
    path = a1111_picture(tmp_path / name, INFOTEXT, "png")
    assert "a snowy cabin, dusk" in info(path)
    has(drawn("--like", path)[0], **READ)


def test_a_model_that_is_named_as_a_picture(tmp_path: Path, model_file: Path, info: Info) -> None:
    """Case 5: the other way round, `info` describes the model."""
    path = tmp_path / "model.png"
    path.hardlink_to(model_file)
    assert "format" in info(path)


# ---------------------------------------------------------------- 6: encodings

UMLAUTS = INFOTEXT.replace("a snowy cabin", "eine verschneite Hütte 雪 🐸")
BOM = "\ufeff"
ENCODED: dict[str, tuple[str, bytes]] = {
    "little, as the EXIF": ("<", b"UNICODE\0" + UMLAUTS.encode("utf-16-le")),
    "little, by its mark": (">", b"UNICODE\0" + (BOM + UMLAUTS).encode("utf-16-le")),
    "big, by its mark": ("<", b"UNICODE\0" + (BOM + UMLAUTS).encode("utf-16-be")),
    "big, as the EXIF": (">", b"UNICODE\0" + UMLAUTS.encode("utf-16-be")),
    # What piexif, and Pellucid before, wrote whatever the byte order of the EXIF was.
    "big, in a little EXIF": ("<", b"UNICODE\0" + UMLAUTS.encode("utf-16-be")),
    "little, in a big EXIF": (">", b"UNICODE\0" + UMLAUTS.encode("utf-16-le")),
    "UTF-8 as ASCII": (">", b"ASCII\0\0\0" + UMLAUTS.encode()),
    "UTF-8 without a code": (">", bytes(8) + UMLAUTS.encode()),
    "UTF-8 as Unicode": (">", b"UNICODE\0" + UMLAUTS.encode()),
    "UTF-16 without a code": (">", UMLAUTS.encode("utf-16")),
    "UTF-16 behind zeros": (">", bytes(8) + UMLAUTS.encode("utf-16-be")),
    "UTF-16 as ASCII": ("<", b"ASCII\0\0\0" + UMLAUTS.encode("utf-16-le")),
    "a code in small letters": ("<", b"Unicode\0" + UMLAUTS.encode("utf-16-le")),
    "with zeros behind": ("<", b"UNICODE\0" + (UMLAUTS + "\0\0").encode("utf-16-le")),
}


@pytest.mark.parametrize("code", ["iso2022_jp", "shift_jis"])
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_comment_in_jis(ending: str, code: str, tmp_path: Path, info: Info) -> None:
    """Case 6: the third code of the EXIF standard, and what Windows' programs write under it."""
    comment = b"JIS\0\0\0\0\0" + INFOTEXT.replace("a snowy cabin", "雪の小屋").encode(code)
    path = tmp_path / f"a.{ending}"
    noisy().save(path, exif=exif(comment))
    assert '"雪の小屋, dusk"' in info(path, "--json")


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_encodings_of_a_comment(
    kind: str, ending: str, tmp_path: Path, info: Info, drawn: Any
) -> None:
    """Case 6: UserComment in either byte order, with a mark or without."""
    order, comment = ENCODED[kind]
    path = tmp_path / f"a.{ending}"
    noisy().save(path, exif=exif(comment, order))
    assert "eine verschneite Hütte 雪 🐸, dusk" in info(path, "--json")
    request = drawn("--like", path)[0]
    has(request, **READ | {"prompt": "eine verschneite Hütte 雪 🐸, dusk"})


TEXTS: dict[str, tuple[bytes, bytes]] = {
    "UTF-8 in tEXt": (b"tEXt", b"parameters\0" + UMLAUTS.encode()),
    "UTF-8 in zTXt": (b"zTXt", b"parameters\0\0" + zlib.compress(UMLAUTS.encode())),
    "iTXt": (b"iTXt", b"parameters\0\0\0\0\0" + UMLAUTS.encode()),
    "UTF-8 with its mark": (b"tEXt", b"parameters\0" + (BOM + UMLAUTS).encode()),
    "UTF-16 with its mark": (b"tEXt", b"parameters\0" + UMLAUTS.encode("utf-16")),
    "packed iTXt": (b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(UMLAUTS.encode())),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_encodings_of_a_png_text(kind: str, tmp_path: Path, info: Info) -> None:
    """Case 6: raw UTF-8 where the PNG standard asks for Latin-1, as many programs write it."""
    path = png_chunks(tmp_path / "a.png", TEXTS[kind])
    assert '"parameters": "eine' in info(path, "--json")
    assert "eine verschneite Hütte 雪 🐸, dusk" in info(path, "--json")


def test_a_png_text_of_windows(tmp_path: Path, info: Info) -> None:
    """Case 6: quotes and dashes of Windows' own Latin-1, where Latin-1 has control characters."""
    content = f"a dog’s bowl – größer\n{SETTINGS}".encode("cp1252")
    path = png_chunks(tmp_path / "a.png", (b"tEXt", b"parameters\0" + content))
    assert "a dog’s bowl – größer" in info(path, "--json")


@pytest.mark.parametrize("text", ["ein Schäfer", "naïve café, ÿ", "Ã©"])
def test_latin_1_in_a_png_text_stays(text: str, tmp_path: Path, info: Info) -> None:
    """Case 6: what is no UTF-8 is Latin-1; what is both is taken for UTF-8."""
    content = f"{text}\n{SETTINGS}".encode("latin-1")
    path = png_chunks(tmp_path / "a.png", (b"tEXt", b"parameters\0" + content))
    want = "é" if text == "Ã©" else text
    assert f"{want}\\n" in info(path, "--json")


# ---------------------------------------------------------------- 7: the text of A1111


def like(text: str, folder: Path, drawn: Any) -> tuple[dict[str, Any], str]:
    return drawn("--like", a1111_picture(folder / "a.png", text))  # type: ignore[no-any-return]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_of_windows(end: str, tmp_path: Path, drawn: Any) -> None:
    """Case 7: line ends are those of the program that saved the text."""
    has(like(INFOTEXT.replace("\n", end), tmp_path, drawn)[0], **READ)


TEMPLATES = (
    "Template: a {{snowy|sunny}} cabin",
    "Template: a {{snowy|sunny}} cabin\nNegative Template: blurry",
    "Wildcard Prompt: a __weather__ cabin",
)


@pytest.mark.parametrize("behind", [*TEMPLATES, "", "\n"])
def test_lines_behind_the_settings(behind: str, tmp_path: Path, drawn: Any) -> None:
    """Case 7: what extensions write below the settings is no part of the prompt."""
    has(like(f"{INFOTEXT}\n{behind}", tmp_path, drawn)[0], **READ)


PROSE = (
    "a poster\nSize: large",
    "the sign says\nSeed: of life, grown in Model: T",
    "a list\nSteps: many",
    "a cat\nNegative prompt: dogs\nSize: large",
)


@pytest.mark.parametrize("text", PROSE)
def test_a_last_line_needs_three_known_names(text: str, tmp_path: Path, drawn: Any) -> None:
    """Case 7: as in A1111, one name that looks like a setting is a part of the prompt."""
    request = like(text, tmp_path, drawn)[0]
    prompt, _, negative = text.partition("\nNegative prompt: ")
    has(request, prompt=prompt, negative_prompt=negative)


def test_three_names_are_settings(tmp_path: Path, drawn: Any) -> None:
    """Case 7: three are enough, and a prompt alone is a prompt."""
    request = like("a cat\nSteps: 2, Seed: 5, Size: 16x16", tmp_path, drawn)[0]
    has(request, prompt="a cat", steps=2, seed=5)
    has(like("a cat, Steps: 2", tmp_path, drawn)[0], prompt="a cat, Steps: 2")


USED: dict[str, tuple[str, dict[str, Any]]] = {
    "variation": (
        "Variation seed: 9, Variation seed strength: 0.25",
        {"variation_seed": 9, "variation_strength": 0.25},
    ),
    "emphasis": ("Emphasis: No norm", {"emphasis": "no_norm"}),
    "early": ("Skip Early CFG: 0.25", {"interval": [0.25, 1.0]}),
    "clip skip": ("Clip skip: 1", {"clip_skip": 1}),
}


@pytest.mark.parametrize("kind", USED)
def test_settings_of_a1111_that_exist_here(kind: str, tmp_path: Path, drawn: Any) -> None:
    """Case 7: they are used."""
    setting, fields = USED[kind]
    has(like(f"{INFOTEXT}, {setting}", tmp_path, drawn)[0], **READ, **fields)


def test_eta_of_a1111(tmp_path: Path, drawn: Any) -> None:
    """Case 7: Eta is used with a sampler that has it."""
    text = f"{INFOTEXT}, Eta: 0.5".replace("Euler a", "DDIM")
    has(like(text, tmp_path, drawn)[0], sampler="ddim", eta=0.5)


UNUSED = {
    "ENSD": "ENSD: 31337",
    "Tiling": "Tiling: True",
    "RNG": "RNG: NV",
    "TI hashes": 'TI hashes: "easynegative: c74b4e810b03"',
    "Face restoration": "Face restoration: CodeFormer",
    "ControlNet 0": 'ControlNet 0: "Module: canny, Model: control_v11p, Weight: 1"',
    "Hires prompt": 'Hires prompt: "a cabin, in detail"',
}


@pytest.mark.parametrize("name", UNUSED)
def test_settings_of_a1111_that_do_not_exist_here(name: str, tmp_path: Path, drawn: Any) -> None:
    """Case 7: they are named, for the picture will be another one."""
    request, err = like(f"{INFOTEXT}, {UNUSED[name]}", tmp_path, drawn)
    has(request, **READ)
    assert name in err


@pytest.mark.parametrize("setting", ["Version: v1.10.1", "Model hash: 45dee52b12", "User: me"])
def test_settings_that_change_no_picture_are_silent(
    setting: str, tmp_path: Path, drawn: Any
) -> None:
    """Case 7: no warning of what does not matter."""
    assert setting.split(":")[0] not in like(f"{INFOTEXT}, {setting}", tmp_path, drawn)[1]


# ---------------------------------------------------------------- 17: the text that others read


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "webp"])
def test_type_of_the_comment_that_is_written(
    ending: str, tmp_path: Path, call: Any, model_file: Path
) -> None:
    """Case 17: EXIF asks for UNDEFINED (7); piexif, and with it A1111, reads no other type."""
    out = tmp_path / f"a.{ending}"
    words = ("generate", "ein Schäfer 雪", "--model", model_file, "--seed", 1, "--out", out)
    assert call(*words)[0] == 0
    with Image.open(out) as picture:
        data = picture.info["exif"]
        comment = picture.getexif().get_ifd(0x8769)[USER_COMMENT]
    assert exif_type(data, USER_COMMENT) == 7
    # `piexif.helper.UserComment.load`: big-endian UTF-16 behind eight letters.
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be").startswith("ein Schäfer 雪\n")


LABELS = {
    ("dpmpp_2m", "karras"): "Sampler: DPM++ 2M, Schedule type: Karras",
    ("euler_ancestral", "uniform"): "Sampler: Euler a, Schedule type: Uniform",
    ("dpmpp_2m_sde", "exponential"): "Sampler: DPM++ 2M SDE, Schedule type: Exponential",
    ("dpmpp_sde", "sgm_uniform"): "Sampler: DPM++ SDE, Schedule type: SGM Uniform",
    ("unipc", "beta"): "Sampler: UniPC, Schedule type: Beta",
    ("dpm2_ancestral", "kl_optimal"): "Sampler: DPM2 a, Schedule type: KL Optimal",
}


@pytest.mark.parametrize(("sampler", "spacing"), LABELS)
def test_labels_of_a1111(
    sampler: str, spacing: str, tmp_path: Path, call: Any, sd1_file: Path
) -> None:
    """Case 17: A1111's web UI sets its menus by these words, and this program reads them back."""
    out = tmp_path / "a.png"
    options = ("--sampler", sampler, "--spacing", spacing, "--steps", 2, "--size", 64)
    words = ("generate", "a cat", "--model", sd1_file, "--seed", 1, *options)
    assert call(*words, "--out", out)[0] == 0
    with Image.open(out) as picture:
        text = picture.text["parameters"]  # type: ignore[attr-defined]
    assert LABELS[sampler, spacing] in text
    a1111_picture(tmp_path / "other.png", text)
    status, found, err = call("info", tmp_path / "other.png")
    assert status == 0 and LABELS[sampler, spacing].split(":")[1].split(",")[0] in found, err


# ---------------------------------------------------------------- 26: damaged and large metadata

LARGE = b"x" * 1_200_000
ICC = b"icc\0\0" + zlib.compress(LARGE)
CHUNKS: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "damaged EXIF": ((b"eXIf", b"II*\0\xff\xff\xff\x7f"),),
    "EXIF of nonsense": ((b"eXIf", b"nonsense"),),
    "EXIF with a wrong count": ((b"eXIf", b"MM\0*\0\0\0\10\xff\xff" + bytes(30)),),
    "large ICC profile": ((b"iCCP", ICC),),
    "damaged ICC profile": ((b"iCCP", b"icc\0\0nonsense"),),
    "large zTXt": ((b"zTXt", b"Comment\0\0" + zlib.compress(LARGE)),),
    "large iTXt": ((b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LARGE)),),
    "damaged zTXt": ((b"zTXt", b"Comment\0\0nonsense"),),
    "many texts": ((b"zTXt", b"Comment\0\0" + zlib.compress(LARGE[:900_000])),) * 80,
    "damaged gAMA": ((b"gAMA", b"\1"),),
    "unknown": ((b"abCd", b"what"),),
}


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_png_with_odd_chunks(
    kind: str, tmp_path: Path, call: Any, model_file: Path, info: Info
) -> None:
    """Case 26: chunks that no pixel needs never refuse a picture, nor what it says besides."""
    text = (b"tEXt", b"parameters\0" + INFOTEXT.encode())
    path = png_chunks(tmp_path / "a.png", text, *CHUNKS[kind])
    out = tmp_path / "out.png"
    words = ("generate", "a cat", "--image", path, "--model", model_file, "--out", out)
    status, _, err = call(*words)
    assert status == 0, err
    assert "a snowy cabin" in info(path)


def test_a_png_with_wrong_checksums(
    tmp_path: Path, call: Any, model_file: Path, info: Info
) -> None:
    """Case 26: of what no pixel needs; libpng and every browser go on."""
    chunk = (b"tEXt", b"parameters\0" + INFOTEXT.encode())
    path = png_chunks(tmp_path / "a.png", chunk, spoil=True)
    words = ("generate", "a cat", "--image", path, "--model", model_file)
    assert call(*words, "--out", tmp_path / "out.png")[0] == 0
    assert info(path)


@pytest.mark.parametrize("ending", ["jpg", "webp", "tiff"])
def test_other_pictures_with_damaged_exif(
    ending: str, tmp_path: Path, call: Any, model_file: Path
) -> None:
    """Case 26: the same in other formats."""
    path = tmp_path / f"a.{ending}"
    if ending == "tiff":
        noisy().save(path, tiffinfo={0x8769: 4_000_000_000})
    else:
        noisy().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    words = ("generate", "a cat", "--image", path, "--model", model_file)
    status, _, err = call(*words, "--out", tmp_path / "out.png")
    assert status == 0, err


def test_a_bomb_of_text_costs_nothing(
    tmp_path: Path, call: Any, model_file: Path, within: Any
) -> None:
    """Case 26: 500 MB that are packed into a text chunk are not unpacked."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(5_000_000)) for _ in range(100)) + packer.flush()
    path = png_chunks(tmp_path / "a.png", (b"zTXt", b"Comment\0\0" + packed))
    with within(4):
        words = ("generate", "a cat", "--image", path, "--model", model_file)
        status, _, err = call(*words, "--out", tmp_path / "out.png")
    assert status == 0, err


def test_a_second_negative_line_is_read_as_in_a1111(tmp_path: Path, drawn: Any) -> None:
    """`parse_generation_parameters` of the web UI takes the label off every line."""
    text = f"a hut\nNegative prompt: blurry\nNegative prompt: dark\n{SETTINGS}"
    request, _ = drawn("--like", a1111_picture(tmp_path / "a.png", text))
    has(request, prompt="a hut", negative_prompt="blurry\ndark")


def test_a_masked_picture_is_repeated_without_its_mask(tmp_path: Path, drawn: Any) -> None:
    """A1111 records that only the mask was drawn, and neither the mask nor the picture."""
    text = f"a hut\n{SETTINGS}, Denoising strength: 0.75, Mask blur: 8, Inpaint area: Only masked"
    request, err = drawn("--like", a1111_picture(tmp_path / "a.png", text))
    has(request, prompt="a hut", steps=4)
    assert "--strength does nothing without --image" in err
    assert "--mask-blur does nothing without --mask" in err


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='x'></svg>", bytes(64)])
def test_a_damaged_picture_is_not_called_weights(
    content: bytes, tmp_path: Path, refused: Any
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert f"{path} is not a picture (PNG, JPEG" in refused("info", path)
