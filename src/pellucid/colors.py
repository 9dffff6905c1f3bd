"""Names of colours in prompts, and the ground that a prompt asks for."""

from __future__ import annotations

import re

from PIL import ImageColor

Color = tuple[int, int, int]
"""Red, green and blue, sRGB, 0 to 255."""

COLORS = {
    "red": (220, 40, 45),
    "orange": (250, 140, 30),
    "yellow": (250, 215, 50),
    "green": (60, 165, 75),
    "blue": (45, 105, 225),
    "purple": (135, 65, 190),
    "pink": (250, 130, 185),
    "brown": (130, 85, 50),
    "gray": (140, 145, 150),
    "black": (35, 35, 40),
}
"""Colour words of the pictures that the included model was trained on."""

NAMES = {name: ImageColor.getrgb(name)[:3] for name in ImageColor.colormap} | COLORS
NAMES["grey"] = NAMES["gray"]
_SHADES = {"light": 0.5, "pale": 0.6, "bright": 0.0, "deep": -0.3, "dark": -0.45}
"""Words in front of a colour -> how far it goes to white, or below 0 to black."""
# "on a plain yellow background", "against the dark blue backdrop", ", teal background", "on purple".
_SHADE = rf"(?:({'|'.join(_SHADES)})[ -]?)?"
_ENDS = re.compile(f"(?<=.)(?=(?:{'|'.join(COLORS)}|grey|white|cyan|violet|salmon)$)")
_NAMED = "|".join(_ENDS.sub("[ -]?", n) for n in sorted(NAMES, key=len, reverse=True))  # "sky blue"
_GROUND = re.compile(
    rf",?\s{{0,3}}\b(?:(?:(?:on|against|over|in front of|with)\s)?(?:(?:an?|the)\s)?"
    rf"(?:(?:plain|pure|clean|solid|simple|flat|soft|vivid|nice|beautiful)\s)?"
    rf"{_SHADE}({_NAMED})(?:[ -]colou?red)?\s(?:background|backdrop|ground)\b"
    rf"|on\s(?:(?:plain|pure|solid)\s)?{_SHADE}({'|'.join(COLORS)}|white)(?=\s{{0,3}}(?:$|[.,!])))",
    re.IGNORECASE,
)


def take_ground(prompt: str) -> tuple[str, Color | None]:
    """A prompt with spaces in place of what it says of its ground, and the colour of that. "a cat on a
    blue background" -> "a cat", (45, 105, 225). None: it says nothing, or more than one colour."""
    found = list(_GROUND.finditer(prompt))
    if not found:
        return prompt, None
    colors = {_color(*(word for word in match.groups() if word)) for match in found}
    if len(colors) > 1:
        return prompt, None
    for match in found:
        prompt = prompt[: match.start()] + " " * len(match.group()) + prompt[match.end() :]
    return prompt, colors.pop()


def _color(*words: str) -> Color:
    """That of a name, or of a shade and a name: "dark", "red"."""
    shade, name = (re.sub("[ -]", "", word).lower() for word in ("", *words)[-2:])
    own = NAMES.get(f"{shade}{name}")
    if own is not None:
        return own
    amount = _SHADES[shade]
    to = 255 if amount > 0 else 0
    red, green, blue = (round(v + abs(amount) * (to - v)) for v in NAMES[name])
    return red, green, blue
