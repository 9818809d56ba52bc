"""Matplotlib figures as inline SVG: drawn once per screen width, no metadata, ids unique on the page, colours and fonts
left to the page."""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from minitron_cli.report.draw.theme import STAND_INS, canvas

# Widths in CSS pixels: of a laptop's text column, of one of three pictures beside each other, and of a phone.
WIDE, SMALL, NARROW = 720, 372, 350

_STAND_IN = re.compile("|".join(STAND_INS))
_IDS = (
    (re.compile(r'\bid="([^"]+)"'), r'id="{0}-\1"'),
    (re.compile(r"url\(#([^)]+)\)"), r"url(#{0}-\1)"),
    (re.compile(r'xlink:href="#([^"]+)"'), r'xlink:href="#{0}-\1"'),
)
_FONT_FAMILY = re.compile(r"font-family: [^;\"]*;? ?|font: (?P<rest>[^;\"']*?)'DejaVu Sans'[^;\"]*(?P<end>;? ?)")
_NOISE = re.compile(
    r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<defs>\s*<style type=\"text/css\">\*\{[^}]*\}</style>\s*</defs>\s*",
    re.S,
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture as SVG elements, and `narrow` for phones where `wide` would not fit; `note` says what is clipped."""

    wide: Markup
    narrow: Markup | None
    note: str = ""


def picture(
    paint: Callable[[Any, bool], str | None], label: str, *key: object, height: float,
    width: float = WIDE, narrow_height: float | None = None,
) -> Picture:  # fmt: skip
    """`paint(figure, narrow)` draws into a matplotlib figure of that size and may return a note for the caption.

    `key` is what the picture is of, unique on the page; the same figure gives the same bytes.
    """
    note, svgs = None, []
    sizes = [(width, height)] if width <= SMALL else [(width, height), (NARROW, narrow_height or height)]
    for each in sizes:
        narrow = each[0] <= SMALL < width
        with canvas(*each) as figure:
            note = paint(figure, narrow)
            svgs.append(_to_svg(figure, unique(*key, "narrow") if narrow else unique(*key), label))
    return Picture(svgs[0], svgs[1] if len(svgs) > 1 else None, note or "")


def _to_svg(figure: Any, name: str, label: str) -> Markup:
    import matplotlib

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # rc parameters count when a figure is saved: without the salt, ids would be random.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    body = _NOISE.sub("", text[text.index(">") + 1 :])
    for pattern, form in _IDS:
        body = pattern.sub(form.format(name), body)
    body = _STAND_IN.sub(lambda found: f"var(--{STAND_INS[found[0]]})", body)
    body = _FONT_FAMILY.sub(_without_family, body)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" viewBox="0 0 {width} {height}" style="--units:{float(width):g}">'
    )
    return Markup(opening + body.strip())  # matplotlib escapes the text that it draws


def _without_family(found: re.Match[str]) -> str:
    """Sizes stay, the family is the page's: `font: 12px 'DejaVu Sans'` -> `font-size: 12px`."""
    if found["rest"] is None:
        return ""
    size = re.search(r"[\d.]+px", found["rest"])
    weight = re.search(r"\b[5-9]00\b|bold", found["rest"])
    kept = [f"font-size: {size[0]}"] if size else []
    kept += [f"font-weight: {weight[0]}"] if weight else []
    return "; ".join(kept) + (found["end"] or "")


def unique(*parts: object) -> str:
    """A short name for a figure that depends on nothing but what it is of."""
    return "f" + hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:10]
