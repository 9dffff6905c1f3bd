"""JavaScript of pages: plain ES modules in the package, joined into one script for a page.

A browser that gets its files from a server loads the modules as they are. A page that is one file
cannot: there each module becomes a function that is called once, in the order of the imports.

The modules keep to a part of the language: imports are written
`import { a, b as c } from "./file.js";`, and an export stands before `function` or `const`.
"""

from __future__ import annotations

import posixpath
import re
from importlib import resources

IMPORT = re.compile(r'^import \{\s+([^}]+?),?\s+\} from "(\.{1,2}/[^"]+\.js)";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const) (\w+))", re.MULTILINE)
COMMENT = re.compile(r"^\s*(?://.*|/\*\*(?:[^*]|\*(?!/))*\*/)\n", re.MULTILINE)


def bundle(script: str, folder: str) -> str:
    """A script without imports that does what `script` does.

    script: the text of a module. folder: what its imports are relative to, a folder of the package
    such as "html/modules". Raises ValueError for modules that import each other.
    """
    parts: dict[str, str] = {}
    main = _joined(script, folder, parts, ())
    return '"use strict";\n' + "".join(parts.values()) + "{\n" + main + "}\n"


def _joined(text: str, folder: str, parts: dict[str, str], above: tuple[str, ...]) -> str:
    """`text` with its imports replaced; the modules that it needs are added to `parts`."""

    def replaced(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[2]))
        if path in above:
            raise ValueError(f"the modules {' and '.join((*above, path))} import each other")
        if path not in parts:
            parts[path] = _function(path, parts, (*above, path))
        names = found[1].replace(" as ", ": ")
        return f"const {{ {names} }} = {_name(path)};\n"

    return COMMENT.sub("", IMPORT.sub(replaced, text))


def _function(path: str, parts: dict[str, str], above: tuple[str, ...]) -> str:
    """A module as a constant that holds what it exports."""
    text = _joined(read(path), posixpath.dirname(path), parts, above)
    exports = ", ".join(EXPORT.findall(text))
    return (
        f"const {_name(path)} = (() => {{\n{EXPORT.sub('', text)}return {{ {exports} }};\n}})();\n"
    )


def _name(path: str) -> str:
    return "module_" + re.sub(r"\W", "_", path.removesuffix(".js"))


def read(path: str) -> str:
    """A text file of the package; path: from the package's folder, such as "html/style.css"."""
    return resources.files("pellucid").joinpath(path).read_text(encoding="utf-8")
