"""A reader of HTML pages, for the tests of the reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser

EMPTY = ("meta", "img", "br", "rect", "circle", "line", "polyline")


class Page(HTMLParser):
    """Tags and text, and that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data + " "

    def cells(self, label: str) -> list[str]:
        """The cells of the line of a table that begins with that word."""
        line = next(part for part in re.findall(r"<tr.*?</tr>", self.raw, re.S) if label in re.sub(r"<[^>]+>", "", part.split("</th>")[0]))
        return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in re.findall(r"<td.*?</td>", line, re.S)]
