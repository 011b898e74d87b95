from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.report.markup import Markup, el, join, number


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


# What an HTML parser itself changes (NUL, carriage returns, surrogates) is left out.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@given(texts, texts)
def test_any_text_comes_back_as_it_was(text: str, value: str) -> None:
    reader = read(el("p", text, title=value))
    assert reader.text == text
    assert reader.tags == [("p", {"title": value})]


def test_markup_is_not_escaped_again() -> None:
    assert el("p", el("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"
    assert join("a&b", Markup("<i></i>"), None, ["c", ["<"]]) == "a&amp;b<i></i>c&lt;"


def test_attributes() -> None:
    assert el("line", class_="axis", stroke_width=1.5, x1=2.0, y1=1 / 3, href=None) == (
        '<line class="axis" stroke-width="1.5" x1="2" y1="0.33"></line>'
    )
    assert el("br") == "<br>"


@pytest.mark.parametrize(("value", "text"), [(0.001, "0"), (-0.001, "0"), (12.5, "12.5"), (3, "3"), (1e6, "1000000")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text
