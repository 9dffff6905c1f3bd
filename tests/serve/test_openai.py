"""OpenAI's interface, as its own Python package speaks it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from sending import png
from starlette.testclient import TestClient


@pytest.fixture
def speaker(client: TestClient, address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as speaker:
        yield speaker


def opened(text: str | None) -> Image.Image:
    assert text is not None
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_generations(speaker: openai.OpenAI, client: TestClient) -> None:
    more = {"seed": 5, "steps": 2, "guidance": 3, "sampler": "ddim", "negative_prompt": "blue"}
    made = speaker.images.generate(
        prompt="a rabbit", n=2, size="16x24", output_format="webp", user="me", extra_body=more
    )
    assert made.data is not None and len(made.data) == 2
    pictures = [opened(each.b64_json) for each in made.data]
    assert [(each.format, each.size) for each in pictures] == [("WEBP", (16, 24))] * 2
    assert (made.size, made.output_format, made.background) == ("16x24", "webp", "opaque")
    assert "user does nothing here" in made.model_extra["warnings"]  # type: ignore[index]
    (job,) = client.get("/api/jobs?limit=1").json()["jobs"]
    expected = {"steps": 2, "guidance": 3.0, "sampler": "ddim", "negative_prompt": "blue"}
    assert job["api"] == "openai" and job["request"].items() >= expected.items()
    assert [each["seed"] for each in job["pictures"]] == [5, 6]


@pytest.mark.parametrize(("quality", "steps"), [("low", 2), ("auto", 3), ("hd", 6)])
def test_quality_is_the_number_of_steps(
    speaker: openai.OpenAI, client: TestClient, quality: Any, steps: int
) -> None:
    speaker.images.generate(prompt="a rabbit", quality=quality)
    (job,) = client.get("/api/jobs?limit=1").json()["jobs"]
    assert job["resolved"]["steps"] == steps


def test_urls_lead_to_the_pictures(speaker: openai.OpenAI, client: TestClient) -> None:
    made = speaker.images.generate(prompt="a rabbit", response_format="url")
    assert made.data is not None and made.data[0].url is not None
    path = "/api/" + made.data[0].url.split("/api/")[1]
    assert client.get(path).headers["content-type"] == "image/png"


def test_a_stream_has_partial_pictures(speaker: openai.OpenAI) -> None:
    stream = speaker.images.generate(
        prompt="a rabbit", stream=True, partial_images=2, extra_body={"steps": 6}
    )
    events = list(stream)
    kinds = [event.type.split(".")[1] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # type: ignore[union-attr]
    assert all(opened(event.b64_json).size == (16, 16) for event in events)


def test_edits_redraw_where_the_mask_is_transparent(speaker: openai.OpenAI) -> None:
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 0))  # more than half of it is transparent
    mask.paste((0, 0, 0, 255), (0, 0, 4, 16))
    made = speaker.images.edit(
        image=("a.png", png(image)),
        mask=("m.png", png(mask)),
        prompt="a rabbit",
        extra_body={"mask_blur": 0, "seed": 1},
    )
    assert made.data is not None
    drawn = np.asarray(opened(made.data[0].b64_json))
    assert np.array_equal(drawn[:, :4], np.asarray(image)[:, :4])
    assert not np.array_equal(drawn[:, 4:], np.asarray(image)[:, 4:])


def test_edits_as_json_and_variations(client: TestClient, speaker: openai.OpenAI) -> None:
    data = base64.b64encode(png(Image.new("RGB", (16, 16), "red"))).decode()
    images = [{"image_url": f"data:image/png;base64,{data}"}]
    reply = client.post("/v1/images/edits", json={"prompt": "a rabbit", "images": images})
    assert reply.status_code == 200, reply.text
    images = [{"image_url": "http://localhost/x.png"}]
    reply = client.post("/v1/images/edits", json={"prompt": "a rabbit", "images": images})
    assert reply.status_code == 400 and "not fetched" in reply.json()["error"]["message"]
    with pytest.warns(DeprecationWarning):  # of OpenAI's, whose newer models do not have it
        made = speaker.images.create_variation(image=("a.png", base64.b64decode(data)), n=2)
    assert made.data is not None and len(made.data) == 2


def test_models(speaker: openai.OpenAI) -> None:
    assert {"tiny", "other"} <= {model.id for model in speaker.models.list()}
    assert speaker.models.retrieve("tiny").owned_by == "pellucid"
    with pytest.raises(openai.NotFoundError):
        speaker.models.retrieve("tinny")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"size": "17x16"}, None, "width must be a multiple of 2"),
        ({"size": "big"}, "size", "size"),
        ({"n": 11}, "n", "n"),
        ({"background": "transparent"}, "background", "transparency"),
        ({"seeds": 3}, "seeds", "nearest: seed"),
        ({"image": "x"}, "image", "unknown field"),
        ({"steps": 0}, "steps", "steps must be between 1 and 1000, got 0"),
        ({"prompt": "<lora:x:1>"}, None, "unknown LoRA"),
    ],
)
def test_bad_input_has_openais_shape(
    client: TestClient, fields: dict[str, Any], param: str | None, said: str
) -> None:
    reply = client.post("/v1/images/generations", json={"prompt": "a rabbit", **fields})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and said in error["message"]
    assert error["param"] == param
    assert reply.headers["x-request-id"]
