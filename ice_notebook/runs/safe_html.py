"""HTML that a value made of itself, rewritten so that it can stand inside a report: known elements only, balanced, nothing that runs.

A notebook does not sanitise the HTML of cells that it trusts, so the report must. An iframe with `sandbox` would be the other way; it
cannot take the page's theme, needs a height that nobody knows, and is removed by GitHub and by every page that does not trust the notebook.
Rewriting keeps tables, which is what values draw, wherever the report is shown. What needs a script, a style sheet or a drawing has lost
its sense here, and its text is the better picture.
"""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

DEPTH = 50  # browsers flatten what is nested deeper than some hundreds

_BLOCKS = frozenset({"div", "pre", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "details", "summary", "ul", "ol"})
_INLINE = frozenset({"span", "b", "strong", "i", "em", "u", "s", "small", "sub", "sup", "code", "samp", "kbd", "mark"})
_VOID = frozenset({"br", "hr", "img", "wbr"})
# Elements that a browser moves or closes by itself when they stand elsewhere, and could so close ours: they are kept in their place only.
_PARENTS = {
    "li": frozenset({"ul", "ol"}),
    "caption": frozenset({"table"}),
    "thead": frozenset({"table"}),
    "tbody": frozenset({"table"}),
    "tfoot": frozenset({"table"}),
    "tr": frozenset({"table", "thead", "tbody", "tfoot"}),
    "th": frozenset({"tr"}),
    "td": frozenset({"tr"}),
}
_STRICT = frozenset({"table", "thead", "tbody", "tfoot", "tr", "ul", "ol"})  # these hold nothing but their parts
_KNOWN = _BLOCKS | _INLINE | _VOID | frozenset({"table"}) | frozenset(_PARENTS)
_RENAMED = {"p": "div"}  # a paragraph is closed by any block that starts in it
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
_NUMBER_ATTRIBUTES = frozenset({"colspan", "rowspan", "width", "height"})
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")


def safe_html(source: str) -> str:
    """Return a value's HTML as balanced elements that neither run nor reach out of their place, or nothing if its sense would be lost.

    Attributes are dropped but for the spans of cells, sizes, and pictures that are part of the text (`data:`).
    """
    writer = _Writer()
    writer.feed(source)
    writer.close()
    if writer.is_living:
        return ""
    result = writer.finished()
    return result if "<img" in result or re.sub(r"<[^>]*>", "", result).strip() else ""


class _Writer(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.is_living = False
        self._parts: list[str] = []
        self._open: list[str] = []
        self._silent: list[str] = []

    def finished(self) -> str:
        self._close_down_to(0)
        return "".join(self._parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        tag = _RENAMED.get(tag, tag)
        self.is_living |= tag in _LIVING
        if tag in _SILENT:
            self._silent.append(tag)
        if self._silent or tag not in _KNOWN:
            return
        self._close_implied(tag)
        if not self._has_place(tag):
            return
        attributes = _attributes(tag, attrs)
        if tag == "img" and not attributes:
            return
        self._parts.append(f"<{tag}{attributes}>")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # HTML has no empty elements: a browser reads <div/> as <div>.
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        tag = _RENAMED.get(tag, tag)
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        elif not self._silent and tag in self._open:
            self._close_down_to(len(self._open) - 1 - self._open[::-1].index(tag))

    def handle_data(self, data: str) -> None:
        if not self._silent and not (self._open and self._open[-1] in _STRICT and data.strip()):
            self._parts.append(html.escape(data, quote=False))

    def _has_place(self, tag: str) -> bool:
        parent = self._open[-1] if self._open else ""
        if len(self._open) >= DEPTH:
            return False
        return parent in _PARENTS[tag] if tag in _PARENTS else parent not in _STRICT

    def _close_implied(self, tag: str) -> None:
        # <tr><td>a<td>b and <ul><li>a<li>b are complete HTML: the next part ends the one before.
        for index in reversed(range(len(self._open))):
            if self._open[index] in _PARENTS.get(tag, ()):
                self._close_down_to(index + 1)
            if self._open[index] in {"table", *_PARENTS.get(tag, ())}:
                return

    def _close_down_to(self, depth: int) -> None:
        while len(self._open) > depth:
            self._parts.append(f"</{self._open.pop()}>")


def _attributes(tag: str, attrs: list[tuple[str, str | None]]) -> str:
    kept = {name: value for name, value in attrs if value and name in _NUMBER_ATTRIBUTES and re.fullmatch(r"[0-9]{1,4}", value)}
    if tag == "img":
        source = dict(attrs).get("src") or ""
        if not _PICTURE.fullmatch(source):
            return ""
        kept["src"] = source
    elif tag not in {"td", "th"}:
        kept = {}
    return "".join(f' {name}="{html.escape(value)}"' for name, value in sorted(kept.items()))
