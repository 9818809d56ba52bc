"""A matplotlib figure as inline SVG: no metadata, ids unique on the page, colours and fonts left to the page."""

import hashlib
import io
import re
from typing import Any

from minitron_cli.report.draw.theme import STAND_INS
from minitron_cli.report.html import Html, escape

_STAND_IN = re.compile("|".join(STAND_INS))
_IDS = (
    (re.compile(r'\bid="([^"]+)"'), r'id="{0}-\1"'),
    (re.compile(r"url\(#([^)]+)\)"), r"url(#{0}-\1)"),
    (re.compile(r'xlink:href="#([^"]+)"'), r'xlink:href="#{0}-\1"'),
)
_FONT_FAMILY = re.compile(r"font-family: [^;\"]*;? ?|font: (?P<rest>[^;\"']*?)'DejaVu Sans'[^;\"]*(?P<end>;? ?)")


def to_svg(figure: Any, name: str, label: str) -> Html:
    """`name` is unique on the page; `label` says what the picture shows. The same figure gives the same bytes."""
    import matplotlib

    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # rc parameters count when a figure is saved: without the salt, ids would be random.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.S)
    body = re.sub(r"<defs>\s*<style type=\"text/css\">\*\{[^}]*\}</style>\s*</defs>\s*", "", body)
    for pattern, form in _IDS:
        body = pattern.sub(form.format(name), body)
    body = _STAND_IN.sub(lambda found: f"var(--{STAND_INS[found[0]]})", body)
    body = _FONT_FAMILY.sub(_without_family, body)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(label)}" viewBox="0 0 {width} {height}" style="--units:{float(width):g}">'
    )
    return Html(opening + body.strip())


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
