"""HTML that a value made of itself, cleaned so that it can stand inside a report: known elements only, balanced, nothing that runs.

A notebook does not sanitise the HTML of cells that it trusts, so the report must. An iframe with `sandbox` would be the other way; it
cannot take the page's theme, needs a height that nobody knows, and is removed by GitHub and by every page that does not trust the notebook.
Cleaning keeps tables, which is what values draw, wherever the report is shown. What needs a script, a style sheet or a drawing has lost
its sense here, and its text is the better picture.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

DEPTH = 50  # browsers flatten what is nested deeper than some hundreds

_BLOCKS = frozenset({"div", "p", "pre", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "details", "summary", "ul", "ol", "li"})
_INLINE = frozenset({"span", "b", "strong", "i", "em", "u", "s", "small", "sub", "sup", "code", "samp", "kbd", "mark"})
_TABLES = frozenset({"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"})
_VOID = frozenset({"br", "hr", "img", "wbr"})
_SILENT = frozenset({"style", "title", "template", "noscript"})  # dropped with what they hold
_LIVING = frozenset(
    {
        "script",
        "svg",
        "math",
        "canvas",
        "iframe",
        "frame",
        "object",
        "embed",
        "video",
        "audio",
        "form",
        "input",
        "button",
        "select",
        "textarea",
    }
)
_SIZES = frozenset({"width", "height"})
_ATTRIBUTES = {
    "img": _SIZES | {"src"},
    "td": _SIZES | {"colspan", "rowspan"},
    "th": _SIZES | {"colspan", "rowspan"},
}
_NUMBER = re.compile(r"[0-9]{1,4}")
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_NO_PICTURE = re.compile(r"<img(?:(?! src=)[^>])*>")


def safe_html(source: str) -> str:
    """Return a value's HTML as balanced elements that neither run nor reach out of their place, or nothing if its sense would be lost.

    Attributes are dropped but for the spans of cells, sizes, and pictures that are part of the text (`data:`).
    """
    import nh3  # noqa: PLC0415 - few values draw themselves

    if not _Look(source).is_plain:
        return ""
    cleaned = nh3.clean(
        source,
        tags=set(_BLOCKS | _INLINE | _TABLES | _VOID),
        clean_content_tags=set(_SILENT),
        attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
        attribute_filter=_kept,
        url_schemes={"data"},
        link_rel=None,
    )
    result = _NO_PICTURE.sub("", cleaned)
    return result if "<img" in result or re.sub(r"<[^>]*>", "", result).strip() else ""


def _kept(_tag: str, name: str, value: str) -> str | None:
    pattern = _PICTURE if name == "src" else _NUMBER
    return value if pattern.fullmatch(value) else None


class _Look(HTMLParser):
    """Finds what has no sense in a report: elements that live, and elements that are nested too deeply."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.is_plain = True
        self._depth = 0
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - the base class's signature
        self._depth += tag not in _VOID
        if tag in _LIVING or self._depth > DEPTH:
            self.is_plain = False

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the base class's signature
        self._depth = max(0, self._depth - 1)
