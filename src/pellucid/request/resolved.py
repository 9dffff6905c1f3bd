"""A request as one model carries it out."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image
from pydantic import ConfigDict, Field

from pellucid.arrangement import Layout, Region
from pellucid.lexicon import LeftOut
from pellucid.prompt import appended
from pellucid.request.request import Request


class Start(NamedTuple):
    """The picture that image to image starts from, and how much of it is redrawn."""

    picture: Image.Image
    """RGB, as `images.open_image` reads it, before it is extended or cropped."""
    strength: float


class SecondPass(NamedTuple):
    """A second pass at a larger size, which draws the enlarged picture over."""

    scale: float
    steps: int
    strength: float
    upscaler: str


class ResolvedRequest(Request):
    """A request as one model carries it out: every default is filled in (`resolve`)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    steps: int
    guidance: float
    sampler: str
    """The name of a file in samplers/."""
    spacing: str
    """One of `schedule.SPACINGS`."""
    width: int
    """Of the result before a second pass; with only_masked, of the part that is drawn."""
    height: int
    drawn_size: tuple[int, int] = Field(default=(0, 0), exclude=True)
    """Width and height that the backbone draws in the first pass; with a second stage not those of the
    result. It is not part of the record, which determines it."""
    regions: tuple[Region, ...] = Field(default=(), exclude=True)
    """The parts of the picture that are drawn by themselves, in the place of `prompt`; none: the
    whole. They follow from the record too."""
    layout: Layout | None = Field(default=None, exclude=True)
    """How the things of the regions become the picture; None: as they are on the canvas."""
    left_out: LeftOut = Field(default=LeftOut(), exclude=True)
    """What the model does not read of the prompts."""
    open_styles: tuple[str, ...] = Field(default=(), exclude=True)
    """Each seed uses the next of these styles, because the prompt names none; none: its words alone."""
    seed: int
    picture: Image.Image | None = Field(default=None, exclude=True, repr=False)
    """`image`, opened; it is not part of the record."""
    others: tuple[ResolvedRequest, ...] = Field(default=(), exclude=True, repr=False)
    """Requests whose pictures are drawn in the same batch, after its own; `plan.batch_key` says
    which."""

    def read(self, text: str) -> str:
        """A text as the model reads it."""
        return self.left_out.rest(text)

    def styled(self, text: str) -> list[str]:
        """A text for each of its own images, with the style that its seed has; a single one, which is
        that of all images, where the seed has none."""
        every = self.in_every_style(text)
        if len(every) == 1:
            return every
        return [every[seed % len(every)] for seed in range(self.seed, self.seed + self.count)]

    def in_every_style(self, text: str) -> list[str]:
        """A text with each of the styles that its seeds may have; as it is if they have none."""
        bare = text.rstrip(" .,;!?")
        styles = self.open_styles if bare else ()
        return [appended(bare, f", {style} style") for style in styles] or [text]

    @property
    def members(self) -> list[ResolvedRequest]:
        """This request by itself, and the others of its batch."""
        return [self.model_copy(update={"others": ()}), *self.others]

    @property
    def start(self) -> Start | None:
        """The picture to start from; None: pure noise."""
        if self.picture is None or self.strength is None:
            return None
        return Start(self.picture, self.strength)

    @property
    def second_pass(self) -> SecondPass | None:
        """None: there is none."""
        if self.hires is None or self.hires_steps is None:
            return None
        return SecondPass(self.hires, self.hires_steps, self.hires_strength, self.hires_upscaler)

    @property
    def largest_size(self) -> tuple[int, int]:
        """Width and height of what the backbone draws in the largest pass."""
        scale = 1.0 if self.second_pass is None else self.second_pass.scale
        return round(self.drawn_size[0] * scale), round(self.drawn_size[1] * scale)

    @property
    def seeds(self) -> list[int]:
        """The seed of each image; on a walk all have the same."""
        own = [self.seed + (i if self.walk is None else 0) for i in range(self.count)]
        return own + [seed for other in self.others for seed in other.seeds]

    def alone(self, i: int) -> ResolvedRequest:
        """The request of its own image i by itself. ValueError if there is none."""
        if not 0 <= i < self.count:
            raise ValueError(f"image must be between 0 and {self.count - 1}, got {i}")
        return self.part(i, 1)
