"""The sections of the page of a run: one module each, NAME.py for the text and NAME.js for the rest.

NAME.py has `SECTION` and a function `content` (`_section.py` says what they are); NAME.js exports
`show(place, page)`, which fills the section's element. Both are found by their name.
"""

from __future__ import annotations

from typing import cast

from pellucid.explain.run.sections._section import Content, Section, SectionModule
from pellucid.plugins import discover

__all__ = ["Content", "Section", "SectionModule", "in_order"]


def in_order() -> dict[str, SectionModule]:
    """The sections by name, in the order of the page."""
    found = discover(__name__)
    modules = {name: cast(SectionModule, found[name]) for name in found}
    return dict(sorted(modules.items(), key=lambda item: item[1].SECTION.order))
