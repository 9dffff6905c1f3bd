"""Things that were drawn on white, cut out and put together."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from pellucid.arrangement import MEETINGS, WORN, Layout, Region
from pellucid.images.matte import cut_out, matte
from pellucid.layers import composed

BLUE = (45, 105, 225)
LEFT, RIGHT = Region("a", 0, 0.25, 0.5, 0.5), Region("b", 0.5, 0.25, 0.5, 0.5)


def disc(ground: tuple[int, int, int], color: str = "red", size: int = 128) -> Image.Image:
    """A disc with a white eye, with soft edges."""
    large = Image.new("RGB", (8 * size, 8 * size), ground)
    draw = ImageDraw.Draw(large)
    draw.ellipse([2 * size, 2 * size, 6 * size, 6 * size], color)
    draw.ellipse([3 * size, 3 * size, 4 * size, 4 * size], "white")
    return large.resize((size, size), Image.Resampling.BOX)


def canvas(*colors: str) -> Image.Image:
    """Discs in the regions of a canvas of 256x256 pixels."""
    found = Image.new("RGB", (256, 256), "white")
    for i, color in enumerate(colors):
        found.paste(disc((255, 255, 255), color), (128 * i, 64))
    return found


def seen(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box of the pixels of a colour: left, top, right, bottom."""
    near = np.abs(np.asarray(picture, np.int16) - color).max(-1) < 40
    rows, columns = np.nonzero(near.any(1))[0], np.nonzero(near.any(0))[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def test_a_white_ground_becomes_a_coloured_one() -> None:
    layout, whole = Layout((1.0,), None, BLUE), Region("a", 0, 0, 1, 1)
    painted = composed(disc((255, 255, 255)), [whole], layout)
    difference = np.abs(np.asarray(painted, np.int16) - np.asarray(disc(BLUE), np.int16))
    assert difference.max() <= 40 and difference.mean() < 0.5


def test_faint_noise_is_ground_and_a_white_eye_is_not() -> None:
    rng = np.random.default_rng(0)
    pixels = np.asarray(disc((255, 255, 255)), np.float32) / 255
    pixels = pixels - rng.random(pixels.shape, np.float32) * 0.04
    alpha = matte(pixels)
    assert alpha[:28].max() == 0
    assert alpha[64, 64] == alpha[56, 56] == 1


def test_a_picture_that_is_all_white_is_all_ground() -> None:
    white = Image.new("RGB", (64, 64), "white")
    assert cut_out(white).getbbox() is None
    regions = [LEFT, RIGHT]
    for meeting in (None, *MEETINGS.values(), *WORN.values()):
        layout = Layout((0.5, 1.0), meeting, BLUE)
        assert composed(white, regions, layout).getcolors() == [(64 * 64, BLUE)]


def sides(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def test_two_things_of_different_sizes_stand_on_one_line() -> None:
    picture = composed(canvas("red", "green"), [LEFT, RIGHT], Layout((2.0, 1.0)))
    red, green = seen(picture, (255, 0, 0)), seen(picture, (0, 128, 0))
    assert abs(sides(red)[0] - 2 * sides(green)[0]) <= 4
    assert red[2] < green[0] and abs(red[3] - green[3]) <= 2
    assert sides(red)[0] + sides(green)[0] > 0.85 * 256
    picture = composed(canvas("red", "green"), [RIGHT, LEFT], Layout((0.5, 0.5)))
    red, green = seen(picture, (255, 0, 0)), seen(picture, (0, 128, 0))
    assert red[2] < green[0] and sides(red)[0] + sides(green)[0] < 0.5 * 256


def test_one_above_the_other() -> None:
    above, below = Region("a", 0.25, 0, 0.5, 0.5), Region("b", 0.25, 0.5, 0.5, 0.5)
    stacked = Image.new("RGB", (256, 256), "white")
    stacked.paste(disc((255, 255, 255)), (64, 0))
    stacked.paste(disc((255, 255, 255), "green"), (64, 128))
    picture = composed(stacked, [above, below], Layout((1.0, 2.0)))
    red, green = seen(picture, (255, 0, 0)), seen(picture, (0, 128, 0))
    assert red[3] < green[1] and abs(2 * sides(red)[1] - sides(green)[1]) <= 4
    assert abs((red[0] + red[2]) - (green[0] + green[2])) <= 3


def test_more_things_stand_in_rows_in_their_order() -> None:
    places = [(0, 0), (128, 0), (256, 0), (0, 128), (128, 128)]
    colors = ("red", "green", "blue", "black", "purple")
    regions = [Region("a", x / 384, y / 384, 1 / 3, 1 / 3) for x, y in places]
    five = Image.new("RGB", (384, 384), "white")
    for place, color in zip(places, colors, strict=True):
        five.paste(disc((255, 255, 255), color), place)
    picture = composed(five, regions, Layout((2.0, 1.0, 1.0, 1.0, 1.0)))
    boxes = [seen(picture, ImageColor.getrgb(color)[:3]) for color in colors]
    widths = [sides(box)[0] for box in boxes]
    assert all(abs(widths[0] - 2 * width) <= 4 for width in widths[1:])
    assert min(min(box[:2]) for box in boxes) >= 0 and max(max(box[2:]) for box in boxes) <= 384
    # A large and a small one above three small ones, all as large as can be.
    assert widths[0] > 0.55 * 384
    assert all(one[2] < two[0] for one, two in (boxes[:2], boxes[2:4], boxes[3:]))
    assert abs(boxes[0][3] - boxes[1][3]) <= 4 and boxes[0][3] < min(box[1] for box in boxes[2:])
    large, small = (
        composed(five, regions, Layout((own, own, own, own, 0.8 * own))) for own in (1.0, 0.5)
    )
    red = [sides(seen(each, (255, 0, 0)))[0] for each in (large, small)]
    assert abs(red[0] - 2 * red[1]) <= 2


def test_things_touch_and_the_one_in_front_is_whole() -> None:
    drawn = canvas("red", "green")
    for words, meeting in (MEETINGS | WORN).items():
        picture = composed(drawn, [LEFT, RIGHT], Layout((1.0, 1.0), meeting, BLUE))
        red, green = seen(picture, (255, 0, 0)), seen(picture, (0, 128, 0))
        assert red[0] < green[2] and green[0] < red[2], words
        assert red[1] < green[3] and green[1] < red[3], words
        front, color = [(red, "red"), (green, "green")][meeting.front]
        width, height = front[2] - front[0], front[3] - front[1]
        assert abs(width - height) <= 2, words
        for box in (red, green):
            assert min(box[:2]) >= 0 and max(box[2:]) <= 256, (words, color)
