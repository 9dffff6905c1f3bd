"""The requests whose pictures must stay the same, and the one function that draws them.

`REQUESTS` is plain data. Each request names its model file and every setting, so a change of a
default does not change it. The models are the one that ships with the package and thin random ones:
`same_pictures_models.json` has the names and shapes of their weights in the published layouts, and
`build` writes them to real checkpoint files. The weights depend on nothing but their names.

Only `draw` and the functions around it call the library. If an internal name changes, only these
have to follow.

    python tests/same_pictures.py --write          add new requests, and update those that changed
    python tests/same_pictures.py --check          print how far each picture is from the file
    python tests/same_pictures.py --check --threads 2 --nudge 1e-6
                                                   ... with two threads and slightly other weights
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
PICTURES = HERE / "same_pictures.json"
MODELS = HERE / "same_pictures_models.json"

SAMPLED = 64  # values that are kept of each array
TOLERANCE = 1e-3  # of the largest kept value
LEVEL = 1.0  # a pixel is a whole number of 0 .. 255, so a tiny change can move it to the next one


# ---------------------------------------------------------------- the library


def draw(
    model: Mapping[str, Any], settings: Mapping[str, Any], folder: Path, nudge: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The final latents (count, C, h, w) and the pictures (count, H, W, 3), 0 .. 255.

    model: as in `model_spec`. settings: as in `BASE`. folder: where `build` has put the files.
    nudge: relative change of all weights, for checks of stability. A GAN has no latents; its
    pictures before rounding take their place.
    """
    from pellucid.adapters import adapt
    from pellucid.pipeline import generate
    from pellucid.request import Request

    if model["kind"] == "gan":
        return draw_gan(folder / model["file"], settings)
    request = Request.model_validate(with_paths(settings, folder))
    loaded = open_model(folder, json.dumps(model), nudge)
    refiner = None
    if request.refiner is not None:
        refiner = open_model(folder, json.dumps(model_spec(settings["refiner"])), nudge)
    *_, last = generate(
        loaded,
        request,
        functools.partial(adapt, folder=folder / "loras", live=model["live_lora"]),
        refiner,
    )
    return last.x.numpy(), np.stack([np.asarray(image) for image in last.images])


def draw_gan(path: Path, settings: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The pictures of a GAN before and after rounding."""
    from pellucid import checkpoints, gan

    generator = checkpoints.load_gan(path, "cpu", torch.float32).generator
    label = gan.class_of(generator.config, settings["prompt"])
    seeds = [settings["seed"] + i for i in range(settings["count"])]
    pixels = gan.sample(generator, seeds, label).numpy()
    rounded = np.rint((pixels.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels, rounded.transpose(0, 2, 3, 1)


@functools.cache
def open_model(folder: Path, spec: str, nudge: float) -> Any:
    """The model of a `model_spec` (as JSON, so that it can be cached), float32 on the CPU."""
    from pellucid import checkpoints

    model = json.loads(spec)
    places = {key: model[key] and folder / model[key] for key in ("file", "vae", "tiny_vae")}
    loaded = checkpoints.load(
        places["file"], "cpu", torch.float32, model["prediction"], places["vae"]
    )
    if places["tiny_vae"] is not None:
        tiny = checkpoints.load_tiny_vae(
            places["tiny_vae"], "cpu", torch.float32, of=loaded.vae.config
        )
        loaded = dataclasses.replace(loaded, tiny_vae=tiny)
    if nudge:
        torch.manual_seed(0)
        for field in dataclasses.fields(loaded):
            part = getattr(loaded, field.name)
            for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
                weight.data = weight.data * (1 + nudge * torch.randn_like(weight))
    return loaded


def request_fields() -> set[str]:
    """The names of all settings that a request can have."""
    from pellucid.request import Request

    return set(Request.model_fields)


def shipped_weights() -> Path:
    """The file of the model that ships with the package."""
    from pellucid import checkpoints

    return checkpoints.embedded()


# ---------------------------------------------------------------- requests


def model_spec(file: str | None, **options: Any) -> dict[str, Any]:
    """A model. file: None is the one that ships with the package."""
    spec = {
        "kind": "diffusion",
        "file": file,
        "prediction": None,
        "vae": None,
        "tiny_vae": None,
        "live_lora": False,
    }
    assert options.keys() <= spec.keys(), options
    return spec | options


# Every setting of a request. None is used only where it turns something off (hires, image, ...) or
# means "as this model was trained" (clip_skip) or "as this sampler is defined" (eta).
BASE: dict[str, Any] = {
    "prompt": "a red apple",
    "negative_prompt": "",
    "clip_skip": None,
    "emphasis": "original",
    "loras": [],
    "embeddings": [],
    "seed": 7,
    "count": 1,
    "steps": 4,
    "guidance": 4.0,
    "sampler": "dpmpp_2m",
    "spacing": "karras",
    "width": 64,
    "height": 64,
    "image": None,
    "strength": 0.6,
    "mask": None,
    "mask_invert": False,
    "mask_grow": 0,
    "mask_blur": 4,
    "inpaint_fill": "original",
    "only_masked": False,
    "padding": 32,
    "extend": [0, 0, 0, 0],
    "hires": None,
    "hires_steps": 3,
    "hires_strength": 0.6,
    "hires_upscaler": "latent",
    "refiner": None,
    "refiner_at": 0.8,
    "mix": [],
    "mix_by": "noise",
    "walk": None,
    "walk_by": "embeddings",
    "walk_span": [0.0, 1.0],
    "variation_seed": 8,
    "variation_strength": 0.0,
    "rescale": 0.0,
    "style_guidance": 0.0,
    "interval": [0.0, 1.0],
    "forecast": False,
    "forecast_more": False,
    "arrange": None,
    "noise": "gaussian",
    "eta": None,
    "clip_guidance": 0.0,
    "decoder": "vae",
}
SHIPPED = {"spacing": "uniform", "emphasis": "no_norm"}
SD3 = {"sampler": "euler", "spacing": "linspace", "emphasis": "no_norm"}
XL = {"sampler": "euler", "spacing": "leading"}

SAMPLERS = (
    *("ddim", "ddim_cfgpp", "ddpm", "deis", "dpm2", "dpm2_ancestral", "dpm_adaptive", "dpm_fast"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_2s_ancestral", "dpmpp_3m_sde"),
    *("dpmpp_sde", "euler", "euler_ancestral", "heun", "lcm", "lms", "plms", "restart", "unipc"),
)
FLOW_SPACINGS = (
    *("trailing", "linspace", "sgm_uniform", "simple", "karras", "exponential", "kl_optimal"),
    *("beta", "beta_time", "lcm"),
)
SPACINGS = (
    *("leading", "ddim", "uniform", "align_your_steps", "align_your_steps_xl"),
    *FLOW_SPACINGS,
)
# Samplers that leave out a level or end at another one with these spacings.
SPECIAL_SPACINGS = (
    *(("ddim", "trailing"), ("deis", "leading"), ("deis", "linspace"), ("deis", "trailing")),
    *(("unipc", "leading"), ("unipc", "linspace"), ("dpmpp_2m", "leading")),
    *(("dpmpp_2m", "linspace"), ("dpm2", "uniform"), ("dpm2_ancestral", "exponential")),
    *(("dpmpp_3m_sde", "uniform"), ("plms", "uniform")),
)
UPSCALERS = (
    *("latent", "latent_antialiased", "latent_bicubic", "latent_bicubic_antialiased"),
    *("latent_nearest", "latent_nearest_exact", "lanczos", "nearest"),
)
NOISES = ("offset", "pyramid", "blue", "pink")
FILLS = ("fill", "noise", "blank")
LONG = "a red apple and a green leaf on a plate, " * 9
GRAMMAR = {
    "emphasis up": "a ((red)) apple",
    "emphasis down": "a [red] apple",
    "emphasis by number": "a (red:1.4) apple and a (green:0.6) leaf",
    "escaped brackets": r"a \(red\) apple",
    "break": "a red apple BREAK a green leaf",
    "and": "a red apple AND a green frog :0.6",
    "and with a negative weight": "a red apple AND a frog :-0.4",
    "change half way": "a [red:green:0.5] apple",
    "change at a step": "a [red:green:3] apple",
    "add later": "a [frog:0.4] apple",
    "take away": "a [frog::0.4] apple",
    "in turns": "a [red|green|blue] apple",
    "long prompt": LONG,
}
# The tasks that the shipped model does all of, and SD1 these.
WITH_SD1 = {
    "no guidance",
    "negative prompt",
    "guidance rescale",
    "variation",
    "image to image",
    "inpainting",
    "inpainting, only masked",
    "extend",
    "mix by noise",
    "mix by embedding",
    "walk of three",
    "second pass, prompt changes in it",
    "prompt, emphasis by number",
    "prompt, break",
    "prompt, and",
    "prompt, in turns",
    "prompt, long prompt",
}


def requests_of_samplers() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, model, settings that differ from BASE) for samplers and spacings."""
    shipped, sd1 = model_spec(None), model_spec("sd1.safetensors")
    guidance = {"ddim_cfgpp": {"guidance": 0.6}}  # its scale is of another kind
    for name in SAMPLERS:
        changes = {"sampler": name, **guidance.get(name, {})}
        yield f"shipped, sampler {name}", shipped, SHIPPED | changes
        yield f"sd1, sampler {name}", sd1, changes | {"spacing": "automatic"}
    for name in FLOW_SPACINGS:
        yield (
            f"shipped, spacing {name}",
            shipped,
            SHIPPED
            | {
                "sampler": "euler",
                "spacing": name,
                "steps": 6,
            },
        )
    for name in SPACINGS:
        yield f"sd1, spacing {name}", sd1, {"sampler": "euler", "spacing": name, "steps": 3}
    for sampler, spacing in SPECIAL_SPACINGS:
        yield (
            f"sd1, sampler {sampler}, spacing {spacing}",
            sd1,
            {"sampler": sampler, "spacing": spacing},
        )
    # From 20 steps on the sampler restart goes back once, from 36 on twice.
    for steps in (20, 36):
        yield (
            f"shipped, restart, {steps} steps",
            shipped,
            SHIPPED
            | {
                "sampler": "restart",
                "steps": steps,
                "guidance": 2.0,
                "width": 32,
                "height": 32,
            },
        )
    for eta in (0.5, 1.0):
        yield f"sd1, ddim, eta {eta}", sd1, {"sampler": "ddim", "spacing": "leading", "eta": eta}
    yield "sd1, euler_ancestral, eta 0.5", sd1, {"sampler": "euler_ancestral", "eta": 0.5}
    yield "sd1, dpmpp_3m_sde, eta 0", sd1, {"sampler": "dpmpp_3m_sde", "eta": 0.0}
    yield "sd1, dpmpp_2m, 1 step", sd1, {"steps": 1, "spacing": "trailing"}


def requests_of_tasks() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The same for what can be drawn and how: with the shipped model and with SD1."""
    shipped, sd1 = model_spec(None), model_spec("sd1.safetensors")
    tasks: dict[str, dict[str, Any]] = {
        "no guidance": {"guidance": 1.0},
        "negative prompt": {"negative_prompt": "green leaf"},
        "empty prompt": {"prompt": ""},
        "three pictures": {"count": 3},
        "wide": {"width": 96, "height": 48},
        "guidance rescale": {"guidance": 8.0, "rescale": 0.7},
        "guidance interval": {"guidance": 8.0, "interval": [0.15, 0.6]},
        "variation": {"variation_strength": 0.3, "variation_seed": 99},
        "variation of two pictures": {"variation_strength": 0.6, "count": 2},
        "image to image": {"image": "photo.png"},
        "image to image, strength 0.35": {"image": "photo.png", "strength": 0.35, "steps": 8},
        "image to image, strength 0": {"image": "photo.png", "strength": 0.0},
        "image to image, another size": {"image": "wide.png", "strength": 0.8},
        "image to image, fresh noise": {"image": "photo.png", "sampler": "euler_ancestral"},
        "inpainting": {"image": "photo.png", "mask": "mask.png", "strength": 0.75},
        "inpainting, sharp edge": {"image": "photo.png", "mask": "mask.png", "mask_blur": 0},
        "inpainting, wider mask": {
            "image": "photo.png",
            "mask": "mask.png",
            "mask_grow": 5,
            "mask_blur": 2,
        },
        "inpainting, inverted mask": {
            "image": "photo.png",
            "mask": "mask.png",
            "mask_invert": True,
        },
        "inpainting, transparent mask": {"image": "photo.png", "mask": "clear.png"},
        "inpainting, only masked": {
            "image": "photo.png",
            "mask": "mask.png",
            "only_masked": True,
            "padding": 8,
        },
        "inpainting, odd size": {
            "image": "odd.png",
            "mask": "odd_mask.png",
            "width": 61,
            "height": 45,
        },
        "extend": {
            "image": "photo.png",
            "extend": [16, 8, 0, 8],
            "width": 80,
            "height": 80,
            "strength": 1.0,
        },
        "extend, only new part": {
            "image": "photo.png",
            "extend": [16, 0, 0, 0],
            "only_masked": True,
            "padding": 16,
            "inpaint_fill": "fill",
            "strength": 0.9,
        },
        "second pass with more steps": {
            "hires": 1.25,
            "hires_steps": 3,
            "hires_strength": 0.5,
            "sampler": "euler_ancestral",
        },
        "second pass, prompt changes in it": {"prompt": "a [red:green:1.5] apple", "hires": 1.5},
    }
    tasks |= {
        f"inpainting, begin with {fill}": {
            "image": "photo.png",
            "mask": "mask.png",
            "inpaint_fill": fill,
            "strength": 0.9,
        }
        for fill in FILLS
    }
    tasks |= {f"noise {noise}": {"noise": noise, "sampler": "euler_ancestral"} for noise in NOISES}
    tasks |= {f"prompt, {name}": {"prompt": prompt} for name, prompt in GRAMMAR.items()}
    tasks |= {
        f"mix by {by}": {"mix": [["rabbit", 1.0], ["leaf", 0.5]], "mix_by": by}
        for by in ("noise", "embedding")
    }
    tasks |= {
        "walk of three": {"walk": "rabbit", "count": 3},
        "walk by estimates": {"walk": "rabbit", "count": 3, "walk_by": "estimates"},
        "walk, one picture": {"walk": "rabbit", "walk_span": [0.2, 0.5]},
        "walk of two, part of the way": {
            "walk": "rabbit",
            "walk_span": [0.25, 0.75],
            "count": 2,
        },
    }
    for task, settings in tasks.items():
        yield f"shipped, {task}", shipped, SHIPPED | settings
        if task in WITH_SD1:
            yield f"sd1, {task}", sd1, settings
    for upscaler in UPSCALERS:
        second = {"hires": 1.5, "hires_upscaler": upscaler}
        yield f"shipped, second pass, {upscaler}", shipped, SHIPPED | second
    for upscaler in ("latent", "lanczos"):
        second = {"hires": 1.5, "hires_upscaler": upscaler}
        yield f"sd1, second pass, {upscaler}", sd1, second
    yield "sd1, clip skip 2", sd1, {"clip_skip": 2}
    weighted = GRAMMAR["emphasis by number"]
    yield "sd1, emphasis no_norm", sd1, {"prompt": weighted, "emphasis": "no_norm"}
    several = {"prompt": "two red apples and a frog on a blue background", "count": 2}
    yield "shipped, several things", shipped, SHIPPED | several
    yield "shipped, several things and forecasts", shipped, SHIPPED | several | {"forecast": True}
    more = {"steps": 20, "guidance": 3.0, "forecast": True, "forecast_more": True}
    yield "shipped, more forecasts", shipped, SHIPPED | more
    touching = {"prompt": "a small cat riding a horse, teal background", "count": 2}
    yield "shipped, things that touch", shipped, SHIPPED | touching
    styled = {"prompt": "a frog, 3d style", "style_guidance": 1.0}
    yield "shipped, style guidance", shipped, SHIPPED | styled
    yield "shipped, clip guidance", shipped, SHIPPED | {"clip_guidance": 600.0}
    yield (
        "shipped, clip guidance alone",
        shipped,
        SHIPPED
        | {
            "clip_guidance": 600.0,
            "guidance": 1.0,
            "sampler": "euler",
        },
    )
    yield (
        "shipped, inpainting with cfg++",
        shipped,
        SHIPPED
        | {
            "image": "photo.png",
            "mask": "mask.png",
            "sampler": "ddim_cfgpp",
            "guidance": 0.6,
        },
    )
    tiny = model_spec("sd1.safetensors", tiny_vae="taesd_decoder.safetensors")
    yield "sd1, tiny decoder", tiny, {"decoder": "tiny"}
    yield (
        "sd1, tiny decoder, second pass",
        tiny,
        {
            "decoder": "tiny",
            "hires": 1.5,
            "hires_upscaler": "lanczos",
        },
    )


def requests_of_adapters() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The same for LoRAs and words of textual inversion."""
    sd1 = model_spec("sd1.safetensors")
    for kind in ("kohya", "locon", "peft", "loha", "lokr", "dora"):
        yield f"sd1, lora {kind}", sd1, {"loras": [[f"loras/{kind}.safetensors", 0.8, 0.8]]}
    kohya, loha = "loras/kohya.safetensors", "loras/loha.safetensors"
    yield "sd1, lora, network alone", sd1, {"loras": [[kohya, 0.7, 0.0]]}
    yield "sd1, lora, text alone", sd1, {"loras": [[kohya, 0.0, 0.9]]}
    yield "sd1, two loras", sd1, {"loras": [[kohya, 0.7, 0.5], [loha, -0.4, -0.4]]}
    yield "sd1, lora in the prompt", sd1, {"prompt": "a red apple <lora:kohya:0.5:0.9>"}
    live = model_spec("sd1.safetensors", live_lora=True)
    yield "sd1, live lora", live, {"loras": [[kohya, 0.8, 0.8]]}
    folder = model_spec("sd1_folder")
    yield "sd1 folder, lora peft", folder, {"loras": [["loras/peft.safetensors", 0.8, 0.8]]}
    shipped = model_spec(None)
    yield "shipped, lora", shipped, SHIPPED | {"loras": [["loras/shipped.safetensors", 0.6, 0.6]]}
    xl = model_spec("sdxl.safetensors")
    yield "sdxl, lora", xl, XL | {"loras": [["loras/sdxl.safetensors", 0.8, 0.8]]}
    sd3 = model_spec("sd3_folder")
    yield "sd3, lora", sd3, SD3 | {"loras": [["loras/sd3.safetensors", 0.8, 0.8]]}
    for word, end in (("newword", "safetensors"), ("oldword", "pt")):
        yield (
            f"sd1, embedding .{end}",
            sd1,
            {
                "prompt": f"a red {word} apple",
                "embeddings": [f"embeddings/{word}.{end}"],
            },
        )
    yield (
        "sd1, embedding in the negative prompt",
        sd1,
        {
            "prompt": "a red apple",
            "negative_prompt": "(newword:1.2), oldword",
            "embeddings": ["embeddings/newword.safetensors", "embeddings/oldword.pt"],
        },
    )
    yield (
        "sdxl, embedding",
        xl,
        XL
        | {
            "prompt": "a red largeword apple",
            "embeddings": ["embeddings/largeword.safetensors"],
        },
    )
    yield (
        "shipped, embedding",
        shipped,
        SHIPPED
        | {
            "prompt": "a red tinyword",
            "embeddings": ["embeddings/tinyword.safetensors"],
        },
    )


def requests_of_families() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The same for the other models and the other layouts of files."""
    photo = {"image": "photo.png"}
    masked = photo | {"mask": "mask.png", "strength": 0.8}
    yield "sd1 folder", model_spec("sd1_folder"), {"negative_prompt": "green"}
    yield "sd1 folder, clip skip 2", model_spec("sd1_folder"), {"clip_skip": 2}
    for betas in ("linear", "cosine", "zero_snr"):
        yield (
            f"sd1 folder, schedule {betas}",
            model_spec(f"sd1_{betas}"),
            {
                "spacing": "trailing",
                "sampler": "ddim",
            },
        )
    yield "sd1, predicts x0", model_spec("sd1.safetensors", prediction="x0"), {}
    yield "sd1, predicts v", model_spec("sd1.safetensors", prediction="v"), {}
    zero = model_spec("sd1_zero_snr.safetensors")
    yield "sd1, marked as v with zero snr", zero, {"spacing": "trailing", "sampler": "euler"}
    yield "sd1, another vae", model_spec("sd1.safetensors", vae="vae.safetensors"), photo
    inpainting = model_spec("sd1_inpainting.safetensors")
    yield "sd1 inpainting", inpainting, masked
    yield "sd1 inpainting, all new", inpainting, masked | {"strength": 1.0}
    yield "sd1 inpainting, only masked", inpainting, masked | {"only_masked": True, "padding": 8}
    yield "sd1 inpainting, without a mask", inpainting, {}
    yield (
        "sd1 inpainting, extend",
        inpainting,
        photo
        | {
            "extend": [0, 0, 16, 0],
            "width": 80,
            "strength": 1.0,
        },
    )
    for prediction in ("v", "eps"):
        yield (
            f"sd2, predicts {prediction}",
            model_spec("sd2.safetensors", prediction=prediction),
            {"negative_prompt": "green"},
        )
    sd2 = model_spec("sd2_folder")
    yield "sd2 folder, v", sd2, {"negative_prompt": "green"}
    yield "sd2 folder, v, rescale", sd2, {"guidance": 8.0, "rescale": 0.7, "spacing": "trailing"}
    yield "sd2 folder, v, clip skip 3", sd2, {"clip_skip": 3}
    yield "sd2 folder, v, image to image", sd2, photo
    xl, refiner = model_spec("sdxl.safetensors"), "sdxl_refiner.safetensors"
    yield "sdxl", xl, XL
    yield "sdxl, negative prompt", xl, XL | {"negative_prompt": "green leaf"}
    yield "sdxl, wide", xl, XL | {"width": 96, "height": 48}
    yield "sdxl, clip skip 1", xl, XL | {"clip_skip": 1}
    yield "sdxl, image to image", xl, XL | photo
    yield "sdxl, inpainting", xl, XL | masked
    yield "sdxl, second pass", xl, XL | {"hires": 1.5}
    yield "sdxl, long prompt", xl, XL | {"prompt": LONG}
    yield "sdxl, refiner", xl, XL | {"refiner": refiner, "refiner_at": 0.6}
    yield (
        "sdxl, refiner, negative prompt",
        xl,
        XL
        | {
            "refiner": refiner,
            "refiner_at": 0.4,
            "negative_prompt": "green",
            "sampler": "dpmpp_2m",
            "spacing": "karras",
        },
    )
    yield (
        "sdxl, refiner, second pass",
        xl,
        XL
        | {
            "refiner": refiner,
            "refiner_at": 0.6,
            "hires": 1.5,
        },
    )
    yield (
        "sdxl, refiner, prompt changes",
        xl,
        XL
        | {
            "refiner": refiner,
            "refiner_at": 0.6,
            "prompt": "a [red:green:0.8] apple",
        },
    )
    yield "sdxl refiner alone", model_spec(refiner), XL
    yield "sdxl folder", model_spec("sdxl_folder"), XL | {"negative_prompt": "green"}
    sd3 = model_spec("sd3_folder")
    yield "sd3", sd3, SD3
    yield "sd3, negative prompt", sd3, SD3 | {"negative_prompt": "green leaf"}
    yield "sd3, wide", sd3, SD3 | {"width": 96, "height": 48}
    yield "sd3, dpmpp_2m", sd3, SD3 | {"sampler": "dpmpp_2m", "spacing": "uniform"}
    yield "sd3, image to image", sd3, SD3 | photo
    yield "sd3, inpainting", sd3, SD3 | masked
    yield "sd3, second pass", sd3, SD3 | {"hires": 1.5}
    gan = model_spec("gan.safetensors", kind="gan")
    yield "gan", gan, {"prompt": "a frog", "count": 2}
    yield "gan, another class", gan, {"prompt": "rabbit", "seed": 123}


def all_requests() -> dict[str, dict[str, Any]]:
    """name -> {"model": as `model_spec`, "settings": as `BASE`}."""
    found: dict[str, dict[str, Any]] = {}
    for several in (
        requests_of_samplers,
        requests_of_tasks,
        requests_of_adapters,
        requests_of_families,
    ):
        for name, model, changes in several():
            assert name not in found and changes.keys() <= BASE.keys(), name
            found[name] = {"model": model, "settings": BASE | changes}
    return found


REQUESTS = all_requests()


# ---------------------------------------------------------------- files


def with_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings with paths below `folder` in place of the names of files."""
    changed = {
        key: str(folder / settings[key])
        for key in ("image", "mask", "refiner")
        if settings[key] is not None
    }
    loras = [[str(folder / file), *weights] for file, *weights in settings["loras"]]
    embeddings = [str(folder / file) for file in settings["embeddings"]]
    return {**settings, **changed, "loras": loras, "embeddings": embeddings}


def build(folder: Path) -> None:
    """Write the models, LoRAs, embeddings and pictures that the requests name."""
    content = json.loads(MODELS.read_text("utf-8"))
    for name, entry in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(entry), "utf-8")
        else:
            save(path, dict(weights_of(name, entry["tensors"])), entry.get("metadata"))
        if path.name == "tokenizer_config.json":
            write_vocabulary(path.parent)
    for name, change in {
        "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
        "zero_snr": {"rescale_betas_zero_snr": True},
    }.items():
        change |= {"prediction_type": "v_prediction"}
        copy_folder(folder / "sd1_folder", folder / f"sd1_{name}", change)
    # Fine-tuned models say by two empty tensors that they predict v from pure noise on.
    marks = {key: np.zeros(0, np.float32) for key in ("v_pred", "ztsnr")}
    sd1 = content["sd1.safetensors"]["tensors"]
    save(folder / "sd1_zero_snr.safetensors", dict(weights_of("sd1.safetensors", sd1)) | marks)
    write_loras(folder / "loras", content)
    write_embeddings(folder / "embeddings")
    write_pictures(folder)


def save(path: Path, weights: dict[str, np.ndarray], metadata: Any = None) -> None:
    save_file(weights, path, metadata)


def copy_folder(source: Path, target: Path, scheduler: Mapping[str, Any]) -> None:
    """A folder of diffusers' with other settings of the scheduler; the weights are links."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "scheduler_config.json":
            place.write_text(json.dumps(json.loads(path.read_text("utf-8")) | scheduler), "utf-8")
        elif path.is_file():
            place.symlink_to(path.resolve())


def flat(tree: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names and shapes in a tree of names."""
    for name, inside in tree.items():
        if isinstance(inside, list):
            yield start + name, tuple(inside)
        else:
            yield from flat(inside, f"{start}{name}.")


def weights_of(file: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, shape in flat(tree):
        yield name, weight(f"{file}/{name}", shape)


def uniform(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Numbers from -spread to spread that depend on the name alone.

    numpy keeps this old generator as it is for ever, and a uniform number takes no function whose
    last digit differs between processors.
    """
    random = np.random.RandomState(zlib.crc32(name.encode()))
    count = int(np.prod(shape))
    block = random.uniform(-spread, spread, min(count, 2**20)).astype(np.float32)
    return np.resize(block, shape)  # a large table repeats itself


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight that keeps signals at their size."""
    if len(shape) > 1 and "embedding" in name and "embedder" not in name:
        return uniform(name, shape, 0.4)
    if len(shape) > 1:
        inputs = int(np.prod(shape[1:]))
        return uniform(name, shape, 1.4 / inputs**0.5)
    if name.endswith(("bias", "running_mean")):
        return uniform(name, shape, 0.1)
    return 1 + uniform(name, shape, 0.1)


def write_vocabulary(folder: Path) -> None:
    """A few pieces of CLIP's vocabulary with its numbers, in the two files of transformers."""
    # The bytes as GPT-2 writes them: those that cannot be seen are letters from 256 on.
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in seen] + [chr(256 + i) for i in range(256 - len(seen))]
    merges = [("r", "e"), ("re", "d</w>"), ("l", "e"), ("g", "re"), ("e", "n</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    numbers = {piece: i for i, piece in enumerate(pieces)}
    numbers |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(numbers), "utf-8")
    lines = "".join(f"{first} {second}\n" for first, second in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", "utf-8")


def write_pictures(folder: Path) -> None:
    """A photo, one of another shape, and masks, by whole numbers alone."""

    def photo(width: int, height: int) -> Image.Image:
        y, x = np.mgrid[:height, :width]
        channels = [(3 * x + y) % 256, (x * y // 7) % 256, (255 - 2 * y - x) % 256]
        channels[1][(x // 9 + y // 7) % 3 == 0] //= 2
        return Image.fromarray(np.stack(channels, -1).astype(np.uint8))

    def mask(width: int, height: int) -> Image.Image:
        pixels = np.zeros((height, width), np.uint8)
        pixels[height // 4 : height * 5 // 8, width // 3 : width * 7 // 8] = 255
        return Image.fromarray(pixels)

    photo(64, 64).save(folder / "photo.png")
    photo(72, 40).save(folder / "wide.png")
    photo(61, 45).save(folder / "odd.png")
    mask(64, 64).save(folder / "mask.png")
    mask(61, 45).save(folder / "odd_mask.png")
    clear = photo(64, 64).convert("RGBA")
    clear.putalpha(Image.fromarray(255 - np.asarray(mask(64, 64))))
    clear.save(folder / "clear.png")


def write_embeddings(folder: Path) -> None:
    """Words of textual inversion for SD1, in two formats, for SDXL and for the shipped model."""
    folder.mkdir()

    def vectors(name: str, width: int) -> np.ndarray:
        return uniform(name, (2, width), 0.4)

    save(folder / "newword.safetensors", {"emb_params": vectors("new", 64)})
    save(folder / "tinyword.safetensors", {"emb_params": vectors("tiny", 192)})
    both = {"clip_l": vectors("l", 64), "clip_g": vectors("g", 128)}
    save(folder / "largeword.safetensors", both)
    held = {"*": torch.from_numpy(vectors("old", 64))}
    about = {"name": "oldword", "step": 900, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": held, **about}, folder / "oldword.pt"
    )


def write_loras(folder: Path, content: Mapping[str, Any]) -> None:
    """LoRAs of several trainers; `content` is that of MODELS."""
    folder.mkdir()

    def modules(file: str, *parts: str) -> dict[str, tuple[int, ...]]:
        """Name without ".weight" -> shape of the weights with one of `parts` in their names."""
        return {
            name.removesuffix(".weight"): shape
            for name, shape in flat(content[file]["tensors"])
            if name.endswith(".weight") and len(shape) > 1 and any(p in name for p in parts)
        }

    unet = modules("sd1_folder/unet/diffusion_pytorch_model.safetensors", ".attn", ".ff.")
    convolutions = modules("sd1_folder/unet/diffusion_pytorch_model.safetensors", ".conv1", "proj_")
    text = modules("sd1_folder/text_encoder/model.safetensors", ".self_attn", ".mlp")
    tower = {f"text_model.{name}": shape for name, shape in text.items()}

    def kohya(start: str, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {start + name.replace(".", "_"): shape for name, shape in found.items()}

    sd1 = kohya("lora_unet_", unet) | kohya("lora_te_", tower)
    files = {
        "kohya": plain(sd1),
        "locon": plain(kohya("lora_unet_", convolutions)),
        "peft": plain(
            {f"unet.{name}": shape for name, shape in unet.items()}
            | {f"text_encoder.{name}": shape for name, shape in tower.items()},
            "lora_A",
            "lora_B",
            alpha=None,
        ),
        "dora": plain(sd1) | {f"{name}.dora_scale": magnitude(name, s) for name, s in sd1.items()},
        "loha": {
            f"{name}.{key}": value
            for name, shape in sd1.items()
            for key, value in (
                ("hada_w1_a", uniform(f"{name}1a", (shape[0], 3), 0.5)),
                ("hada_w1_b", uniform(f"{name}1b", (3, shape[1]), 0.5)),
                ("hada_w2_a", uniform(f"{name}2a", (shape[0], 3), 0.5)),
                ("hada_w2_b", uniform(f"{name}2b", (3, shape[1]), 0.5)),
                ("alpha", np.float32([1.5])[0:1].reshape(())),
            )
        },
        "lokr": {
            f"{name}.{key}": value
            for name, shape in sd1.items()
            for key, value in (
                ("lokr_w1", uniform(f"{name}1", (4, 4), 0.5)),
                ("lokr_w2", uniform(f"{name}2", (shape[0] // 4, shape[1] // 4), 0.3)),
            )
        },
        "sdxl": plain(
            kohya(
                "lora_unet_",
                {
                    name.removeprefix("model.diffusion_model."): shape
                    for name, shape in modules("sdxl.safetensors", ".attn1.", ".attn2.").items()
                    if name.startswith("model.diffusion_model.")
                },
            )
            | kohya("lora_te1_", tower)
            | kohya(
                "lora_te2_",
                modules("sdxl_folder/text_encoder_2/model.safetensors", ".self_attn", ".mlp"),
            )
        ),
        "sd3": plain(
            {
                f"transformer.{name}": shape
                for name, shape in modules(
                    "sd3_folder/transformer/diffusion_pytorch_model.safetensors", ".attn.to_"
                ).items()
            },
            "lora_A",
            "lora_B",
            alpha=None,
        ),
    }
    with safe_open(shipped_weights(), "np") as file:
        shapes = {
            key.removeprefix("backbone.").removesuffix(".weight"): tuple(
                file.get_slice(key).get_shape()
            )
            for key in sorted(file.keys())
            if key.startswith("backbone.") and ".attn" in key and key.endswith(".weight")
        }
    files["shipped"] = plain(kohya("lora_unet_", shapes))
    for name, weights in files.items():
        save(folder / f"{name}.safetensors", weights)


def plain(
    modules: Mapping[str, tuple[int, ...]],
    down: str = "lora_down",
    up: str = "lora_up",
    alpha: float | None = 2.0,
    rank: int = 3,
) -> dict[str, np.ndarray]:
    """A LoRA of the usual kind: two factors for each module and, for some trainers, alpha."""
    weights = {}
    for name, shape in modules.items():
        inputs = int(np.prod(shape[1:]))
        first, second = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
        weights[f"{name}.{down}.weight"] = uniform(f"{name}/down", first, 1.4 / inputs**0.5)
        weights[f"{name}.{up}.weight"] = uniform(f"{name}/up", second, 0.5)
        if alpha is not None:
            weights[f"{name}.alpha"] = np.full((), alpha, np.float32)
    return weights


def magnitude(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """DoRA's length of each row of a changed weight."""
    return 1 + uniform(f"{name}/dora", (shape[0], *[1] * (len(shape) - 1)), 0.3)


# ---------------------------------------------------------------- what is kept


def summary(values: np.ndarray) -> dict[str, Any]:
    """Shape, mean, deviation and some values at fixed places."""
    places = np.random.RandomState(0).randint(0, 2**31 - 1, SAMPLED) % values.size
    sampled = values.reshape(-1)[places]
    whole = values.dtype.kind in "iu"
    numbers = values.astype(np.float64)
    return {
        "shape": list(values.shape),
        "mean": digits(numbers.mean()),
        "std": digits(numbers.std()),
        "values": [int(value) if whole else digits(value) for value in sampled],
    }


def digits(value: float) -> float:
    return float(f"{value:.6g}")


def drawn(name: str, folder: Path, nudge: float = 0.0) -> dict[str, Any]:
    """The summaries of what a request draws now."""
    request = REQUESTS[name]
    latents, picture = draw(request["model"], request["settings"], folder, nudge)
    return {"latents": summary(latents), "picture": summary(picture)}


def distances(got: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, float]:
    """How far two summaries are apart, in parts of what is allowed; 1 is the limit."""
    found = {}
    for what in ("latents", "picture"):
        a, b = got[what], kept[what]
        if a["shape"] != b["shape"]:
            found[f"{what} shape"] = float("inf")
            continue
        allowed = TOLERANCE * max(abs(value) for value in b["values"])
        for key in ("mean", "std"):
            found[f"{what} {key}"] = abs(a[key] - b[key]) / allowed
        if what == "picture":
            allowed = max(allowed, LEVEL)
        apart = np.subtract(a["values"], b["values"])
        found[f"{what} values"] = float(np.abs(apart).max()) / allowed
    return found


def load_kept() -> dict[str, Any]:
    return json.loads(PICTURES.read_text("utf-8")) if PICTURES.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the file anew")
    parser.add_argument("--check", action="store_true", help="print how far each request is off")
    parser.add_argument("--every", type=int, default=1, help="check only every n-th request")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nudge", type=float, default=0.0, help="relative change of all weights")
    options = parser.parse_args()
    if options.write == options.check or (options.write and (options.nudge or options.every > 1)):
        parser.error("give --write or --check; --nudge and --every go with --check alone")
    torch.set_num_threads(options.threads)
    kept, new, lines = load_kept(), {}, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(folder)
        for name in list(REQUESTS)[:: options.every]:
            got = drawn(name, folder, options.nudge)
            off = distances(got, kept[name]) if name in kept else {"new": float("inf")}
            worst = max(off, key=lambda key: off[key])
            lines.append((off[worst], f"{off[worst]:10.4f} of the limit  {name}: {worst}\n"))
            # What is still the same keeps its old numbers, so that a change shows what it changed.
            new[name] = kept[name] if off[worst] <= 1 else got
    lines.sort(reverse=True)
    sys.stdout.write("".join(line for off, line in lines if options.check or off > 1))
    if options.write:
        rows = (f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in new.items())
        PICTURES.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
        sys.stdout.write(f"{len(new)} requests in {PICTURES}\n")


if __name__ == "__main__":
    main()
