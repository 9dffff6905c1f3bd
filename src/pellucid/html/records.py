"""Records: what was observed, as data that goes to JSON and comes back the same."""

from __future__ import annotations

from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from pellucid.images.data_url import from_data_url, to_data_url


def _picture(value: Any) -> Image.Image:
    return value if isinstance(value, Image.Image) else from_data_url(str(value))


Picture = Annotated[Image.Image, PlainValidator(_picture), PlainSerializer(to_data_url)]
"""A picture as a field of a record; in JSON a data: URL that holds it as PNG, without loss."""


class Record(BaseModel):
    """Fields that do not change: `model_dump_json()` writes them, `model_validate_json()` reads.

    A `validation_alias` is the name of a field in JSON of older versions. Infinity, which JSON does not
    have, is a string there.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_inf_nan="strings",
        validate_by_name=True,
        validate_by_alias=True,
    )
