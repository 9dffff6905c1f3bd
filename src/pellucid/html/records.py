"""Records: what was seen at work, as data that goes to JSON and comes back the same."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from pellucid.html.pages import data_url

PNG_URL = "data:image/png;base64,"


def _picture(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if not (isinstance(value, str) and value.startswith(PNG_URL)):
        raise ValueError(f"a picture or a URL that begins with {PNG_URL} is wanted")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(value.removeprefix(PNG_URL))))
        image.load()
    except Exception as error:  # decoders meet hostile bytes with every kind of exception
        raise ValueError(f"the picture cannot be read: {error}") from error
    return image


Picture = Annotated[Image.Image, PlainValidator(_picture), PlainSerializer(data_url)]
"""A picture as a field of a record; in JSON a data: URL that holds it as PNG, without loss."""


class Record(BaseModel):
    """Fields that do not change: `model_dump_json()` writes them, `model_validate_json()` reads.

    Infinity, which JSON does not have, is written as a string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
