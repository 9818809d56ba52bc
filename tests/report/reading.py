"""An independent reader of the page: tables by caption, ids, links, text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "link", "img", "use", "path", "rect", "image", "stop"}


@dataclass
class Page(HTMLParser):
    """What a browser would see of a report, without one."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    sections: dict[str, str] = field(default_factory=dict)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: str = ""

    def __init__(self, source: str) -> None:
        HTMLParser.__init__(self)
        self.tables, self.ids, self.sections, self.attributes, self.tags, self.text = {}, [], {}, [], [], ""
        self._rows: list[list[str]] = []
        self._caption: str | None = None
        self._cell = self._in_caption = False
        self._section = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "section":
            self._section = values["id"]
            self.sections[self._section] = ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = True
        if tag == "caption":
            self._in_caption, self._caption = True, ""
        if self._cell and tag in ("span", "strong"):
            self._rows[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            assert self._caption is not None, "a table without a caption"
            self.tables[self._caption] = [[" ".join(cell.split()) for cell in row] for row in self._rows]
            self._caption = None
        if tag in ("td", "th"):
            self._cell = False
        if tag == "caption":
            self._in_caption = False
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._section:
            self.sections[self._section] += data
        if self._cell:
            self._rows[-1][-1] += data
        if self._in_caption:
            self._caption = (self._caption or "") + data

    def table(self, caption: str) -> dict[str, list[str]]:
        """The rows of the table whose caption begins so: first cell -> all cells."""
        (name,) = [key for key in self.tables if key.startswith(caption)]
        return {row[0]: row for row in self.tables[name][1:]}
