"""The documentation's site (``make docs``): Sphinx with Markdown pages and the notebook.

The built pages ask no other host for anything: formulas are MathML, which browsers draw by
themselves, and the pictures are drawn here before every build.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402

logger = logging.getLogger(__name__)

project = "Pellucid"
copyright = "its authors"
extensions = ["myst_nb"]
exclude_patterns = ["_figures"]

html_theme = "furo"
html_title = "Pellucid"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_math_renderer = "mathml"
pygments_style = "friendly"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120


def formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """A formula as MathML; one that cannot be read is a warning that names its place."""
    displayed = isinstance(node, nodes.math_block)
    if re.search(r"\\[dt]?frac\s*\d", node.astext()):  # \frac12 would be 12 over what follows
        logger.warning(r"a fraction needs braces, such as \frac{1}{2}", location=node)
    try:
        written = tex2mathml(node.astext(), as_block=displayed)
    except MathError as error:
        logger.warning("a formula cannot be read: %s", error, location=node)
        written = ""
    translator.body.append(f'<div class="math">{written}</div>' if displayed else written)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.add_config_value("short_figures", False, "")
    app.connect(
        "builder-inited",
        lambda app: figures.draw_all(HERE / "_figures", app.config.short_figures),
    )
