from __future__ import annotations

from html.parser import HTMLParser

import pytest

from ice_notebook.runs.safe_html import DEPTH, safe_html

FRAME = """<div>
<style scoped>.dataframe tbody tr th { vertical-align: top; }</style>
<table border="1" class="dataframe" id="T_0f3a">
  <thead><tr style="text-align: right;"><th></th><th>loss</th></tr></thead>
  <tbody><tr><th>0</th><td colspan="2">0.5 &lt; 1</td></tr></tbody>
</table>
<p>1 row in all</p>
</div>"""


def test_a_table_stays_a_table_without_styles_classes_and_ids() -> None:
    result = safe_html(FRAME)
    assert '<tbody><tr><th>0</th><td colspan="2">0.5 &lt; 1</td></tr></tbody>' in result
    assert "<p>1 row in all</p>" in result
    for gone in ("style", "class", "id=", "vertical-align"):
        assert gone not in result


@pytest.mark.parametrize(
    "source",
    [
        "<b>x</b><script>alert(1)</script>",
        "<svg onload=alert(1)></svg>text",
        "<iframe srcdoc='<script>1</script>'></iframe>text",
        "<math><mtext></mtext></math>text",
        "<input type=checkbox>label",
        "<style>b{}</style>",
        "<img src=x onerror=alert(1)>",
        "  ",
        "<div><div></div></div>",
        "",
    ],
)
def test_what_has_lost_its_sense_is_nothing(source: str) -> None:
    assert safe_html(source) == ""


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("<b onclick='alert(1)' style='position:fixed'>x</b>", "<b>x</b>"),
        ("<a href='javascript:alert(1)'>x</a>", "x"),
        ("<b>x", "<b>x</b>"),
        ("x</div></div></td></table>y", "xy"),
        ("<td>x</td>", "x"),
        ("<li>x</li>", "<li>x</li>"),
        ("<ul><li>a<li>b</ul>", "<ul><li>a</li><li>b</li></ul>"),
        (
            "<table><tr><td>a<td>b<tr><td>c</table>",
            "<table><tbody><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></tbody></table>",
        ),
        ("<p>a<p>b</p></p>", "<p>a</p><p>b</p><p></p>"),
        ("<b><i>x</b>y</i>", "<b><i>x</i></b><i>y</i>"),
        ("<!-- <b> -->x<!DOCTYPE html><?php 1 ?>", "x"),
        ("a &amp;lt;script&gt; &#60;b&#62;", "a &amp;lt;script&gt; &lt;b&gt;"),
        ("<style>b{}</style>x<noscript><img src=x></noscript>", "x"),
        ('<img src="data:image/png;base64,aGk=" alt=x width=40>', '<img src="data:image/png;base64,aGk=" width="40">'),
        ('x<img src="data:image/svg+xml;base64,aGk=">', "x"),
        ("<table>stray<tr><td>a</td></tr></table>", "stray<table><tbody><tr><td>a</td></tr></tbody></table>"),
        ("<table><td colspan=2 width='1px'>a</table>", '<table><tbody><tr><td colspan="2">a</td></tr></tbody></table>'),
    ],
)
def test_only_known_elements_in_their_places_remain(source: str, result: str) -> None:
    assert safe_html(source) == result


def test_what_is_nested_too_deeply_is_nothing() -> None:
    assert safe_html("<div>" * DEPTH + "x" + "</div>" * DEPTH)
    assert safe_html("<div>" * 5000 + "x" + "</div>" * 10) == ""


def test_the_result_is_balanced_and_unchanged_by_a_second_pass() -> None:
    pieces = [
        "<table>",
        "<tr>",
        "<td>",
        "</td>",
        "<div>",
        "</div>",
        "<ul>",
        "<li>",
        "</ul>",
        "<b>",
        "</b>",
        "x",
        "<p>",
        "</table>",
        "<h1>",
    ]
    for seed in range(300):
        source = "".join(pieces[(seed * 7919 + n * n * 31 + n * seed) % len(pieces)] for n in range(40))
        result = safe_html(source)
        _Balance(result)
        assert safe_html(result) == result


class _Balance(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
