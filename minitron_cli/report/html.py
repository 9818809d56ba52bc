"""HTML as values: every text is escaped unless it is HTML already."""

import html
from collections.abc import Iterable, Sequence

_VOID = ("meta", "br", "hr", "link")
Child = "str | Html | None | Iterable[str | Html | None]"


class Html(str):
    """Text that is HTML already. Made by `tag` and `join` only, and from files of this package."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Text as HTML, safe inside an element and inside a quoted attribute. HTML stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """`tag("td", "a < b", class_="n")` -> `<td class="n">a &lt; b</td>`.

    None children are left out, lists are taken apart. An attribute None or False is left out, True stands alone;
    `class_` is `class` and `aria_label` is `aria-label`.
    """
    shown = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        shown.append(f" {key}" if value is True else f' {key}="{escape(value)}"')
    opening = f"<{name}{''.join(shown)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: object) -> Html:
    """Children one after the other, as `tag` takes them."""
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            parts.append(escape(child))
        elif isinstance(child, Iterable):
            parts.append(join(*child))
        else:
            parts.append(escape(child))
    return Html("".join(parts))


def table(
    columns: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    caption: str,
    numbers_from: int = 1,
    row_head: bool = True,
) -> Html:
    """A table in a container of its own that scrolls: columns from `numbers_from` on hold numbers, to the right.

    The first cell of a row is its heading.
    """

    def side(i: int) -> str | None:
        return "n" if i >= numbers_from else None

    head = tag("tr", [tag("th", c, scope="col", class_=side(i)) for i, c in enumerate(columns)])
    body = []
    for row in rows:
        cells = [
            tag("th", cell, scope="row") if i == 0 and row_head else tag("td", cell, class_=side(i))
            for i, cell in enumerate(row)
        ]
        body.append(tag("tr", cells))
    grid = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", body))
    return tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=caption)


def figure(picture: Html, caption: object, numbers: Html | None = None, wide: bool = False) -> Html:
    """A picture that scrolls in its own container, its caption, and its numbers to unfold."""
    details = tag("details", tag("summary", "The numbers"), numbers) if numbers else None
    scroll = tag("div", picture, class_="scroll", tabindex="0", role="group", aria_label="chart")
    return tag("figure", scroll, tag("figcaption", caption), details, class_="wide" if wide else None)


def section(identity: str, title: str, *children: object) -> Html:
    """A section of the page with its heading."""
    return tag(
        "section", tag("h2", title, id=f"{identity}-title"), *children, id=identity, aria_labelledby=f"{identity}-title"
    )


def missing(text: str) -> Html:
    """Says what is not there (yet), and how it would be made; what stands between `backticks` is code."""
    parts = text.split("`")
    return tag("p", [tag("code", part) if i % 2 else part for i, part in enumerate(parts)], class_="missing")
