"""The token loss: which tokens are meant, and what attention it asks for."""

from __future__ import annotations

import torch

from pellucid.data import GroundedPhrase
from pellucid.data.emoji import ABOVE, BELOW, LEFT, RIGHT
from pellucid.tokenizer import Tokenizer
from pellucid.train.token_loss import MOST, boxes, columns, token_loss

CAPTION = "a red apple and a snowman, flat"
APPLE, SNOWMAN = GroundedPhrase(2, 11, LEFT), GroundedPhrase(18, 25, RIGHT)


def test_columns_are_the_tokens_of_the_words() -> None:
    tokenizer = Tokenizer.train([CAPTION], 300, context_length=32)
    row = tokenizer([CAPTION])[0]
    found = columns(tokenizer, CAPTION, (APPLE, SNOWMAN))
    assert not found[2:].any()
    for place, chosen in zip((APPLE, SNOWMAN), found[:2], strict=True):
        assert row[chosen].tolist() == tokenizer.encode(CAPTION[place.start : place.end])
    assert not columns(tokenizer, CAPTION, ()).any()


def test_words_that_were_cut_off_have_no_columns() -> None:
    tokenizer = Tokenizer.train([CAPTION], 300, context_length=5)
    assert columns(tokenizer, CAPTION, (APPLE, SNOWMAN)).sum(1).tolist()[1] == 0


def looking(box: tuple[float, float, float, float], outside: float) -> torch.Tensor:
    """A map (1, 2, 4, 4, 3) whose token 1 has 1 inside of the box, and `outside` elsewhere."""
    left, top, right, bottom = (round(4 * edge) for edge in box)
    weights = torch.zeros(1, 2, 4, 4, 3)
    weights[..., 1] = outside
    weights[:, :, top:bottom, left:right, 1] = 1
    return weights


def naming(*tokens: int) -> torch.Tensor:
    """Columns (1, MOST, 3): thing i is named by the i-th of these tokens."""
    found = torch.zeros(1, MOST, 3, dtype=torch.bool)
    for thing, token in enumerate(tokens):
        found[0, thing, token] = True
    return found


def test_the_loss_is_the_square_of_the_share_outside() -> None:
    token = naming(1)
    for box in (LEFT, RIGHT, ABOVE, BELOW):
        where = boxes([GroundedPhrase(0, 1, box)])[None]
        for outside, wanted in ((0.0, 0.0), (1.0, 0.25), (0.5, 1 / 9)):
            maps = [looking(box, outside)] * 3
            torch.testing.assert_close(token_loss(maps, token, where), torch.tensor(wanted))


def test_nothing_with_a_place_is_no_loss() -> None:
    none = torch.zeros(1, 2, 3, dtype=torch.bool)
    assert token_loss([looking(LEFT, 1.0)], none, torch.zeros(1, 2, 4)) == 0
    assert token_loss([], none, torch.zeros(1, 2, 4)) == 0


def test_descending_it_moves_the_attention_into_the_box() -> None:
    token = naming(1, 2)
    where = boxes([GroundedPhrase(0, 1, LEFT), GroundedPhrase(2, 3, RIGHT)])[None]
    logits = torch.zeros(1, 2, 4, 4, 3, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        token_loss([logits.softmax(-1)], token, where).backward()
        optimizer.step()
    weights = logits.detach().softmax(-1)[0].mean(0)
    assert weights[:, :2, 1].sum() / weights[..., 1].sum() > 0.8
    assert weights[:, 2:, 2].sum() / weights[..., 2].sum() > 0.8
