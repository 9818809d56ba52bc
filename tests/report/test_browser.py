"""The page in a real browser: at laptop and phone widths, light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minitron_cli.report.page import SECTIONS
from tests.report.browser import Browser, browser

VIEWS = [(width, dark) for width in (1280, 390) for dark in (False, True)]

# Contrast of every text against the page, by the formula of WCAG 2.2; text in SVG is filled, other text coloured.
_CONTRASTS = """
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!c.endsWith(', 0)') && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
const low = [];
const texts = 'h1, h2, h3, p, th, td, a, strong, figcaption, summary, code, .badge, svg text, span';
for (const e of document.querySelectorAll(texts)) {
  if (!e.textContent.trim() || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), colour = e.namespaceURI.endsWith('svg') ? style.fill : style.color;
  const a = light(colour), b = light(ground(e)), ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push([e.tagName, e.textContent.slice(0, 30), colour, ratio]);
}
return low;
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as session:
        yield session


@pytest.mark.parametrize(("width", "dark"), VIEWS, ids=lambda v: {True: "dark", False: "light"}.get(v, str(v)))
def test_in_a_real_browser(chromium: Browser, fake_run: Path, width: int, dark: bool) -> None:
    chromium.open(fake_run / "report.html", width, dark)
    assert chromium.console() == []
    assert chromium.run("return innerWidth") == width
    assert chromium.run("return document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    for name in SECTIONS:
        box: dict[str, Any] = chromium.run(f"return document.getElementById('{name}').getBoundingClientRect().toJSON()")
        assert box["height"] > 60
        assert box["right"] <= width
    shown = "const shown = [...document.querySelectorAll('svg')].filter(s => s.getClientRects().length);"
    assert chromium.run(f"{shown} return shown.length") == chromium.run(
        "return document.querySelectorAll('figure').length"
    )
    assert chromium.run(f"{shown} return shown.filter(s => s.getBoundingClientRect().height < 40).length") == 0
    cut = "s.getBoundingClientRect().right > innerWidth || s.parentElement.scrollWidth > s.parentElement.clientWidth"
    assert chromium.run(f"{shown} return shown.filter(s => {cut}).length") == 0, "a picture is cut off"
    small = "parseFloat(getComputedStyle(t).fontSize) * s.getBoundingClientRect().width / s.viewBox.baseVal.width < 9.5"
    tiny = f"{shown} return shown.flatMap(s => [...s.querySelectorAll('text')].filter(t => {small})).length"
    assert chromium.run(tiny) == 0, "text in a picture is too small to read"
    assert chromium.run(_CONTRASTS) == []


def test_the_theme_reaches_the_pictures(chromium: Browser, fake_run: Path) -> None:
    seen = []
    for dark in (False, True):
        chromium.open(fake_run / "report.html", 1280, dark)
        seen.append(chromium.run(
            "const s = e => getComputedStyle(document.querySelector(e));"
            "return [s('body').backgroundColor, s('#training svg text').fill, s('#importance svg image').filter]"
        ))  # fmt: skip
    (paper, ink, plain), (night, chalk, turned) = seen
    assert paper != night
    assert ink != chalk
    assert plain == "none"
    assert "invert" in turned


def test_what_is_wider_scrolls_in_its_own_container(chromium: Browser, fake_run: Path) -> None:
    chromium.open(fake_run / "report.html", 390, dark=False)
    wider = chromium.run(
        "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert wider > 5
    reachable = "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)"
    assert chromium.run(reachable), "a keyboard can scroll it"


def test_the_checks_find_what_they_look_for(chromium: Browser, fake_run: Path) -> None:
    """The negative control: pale text, something too wide and a broken script are all noticed."""
    chromium.open(fake_run / "report.html", 390, dark=False)
    chromium.run(
        "document.querySelector('h1').style.color = '#aaa';"
        "document.querySelector('.for-narrow svg text').style.fill = '#bbb'"
    )
    assert {found[0] for found in chromium.run(_CONTRASTS)} == {"H1", "text"}
    chromium.run("document.querySelector('main').style.width = '800px'")
    assert chromium.run("return document.documentElement.scrollWidth") > 390
    chromium.run(
        "const s = document.createElement('script'); s.src = 'https://example.org/x.js'; document.body.append(s)"
    )
    assert any("Content Security Policy" in line for line in chromium.console())
