"""Numbers as people read them; each is a filter of the templates too."""

from collections.abc import Mapping

from minitron_cli.spec.axes import AXES
from minitron_cli.spec.counts import runs

NOTHING = "–"
UNKNOWN_MACHINE = "a machine that was not recorded"


def count(value: float | None) -> str:
    """4_512_746_496 -> "4.51B", 832_128 -> "832K": three digits and a unit."""
    return NOTHING if value is None else _with_unit(value, {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3}, "")


def size(num_bytes: float | None) -> str:
    """1_234_567 -> "1.23 MB": decimal units, as disks and checkpoints are quoted."""
    if num_bytes is None:
        return NOTHING
    return _with_unit(num_bytes, {" TB": 1e12, " GB": 1e9, " MB": 1e6, " KB": 1e3}, " B")


def _with_unit(value: float, units: Mapping[str, float], one: str) -> str:
    for unit, factor in units.items():
        if abs(value) >= 0.9995 * factor:
            return f"{three(value / factor)}{unit}"
    return f"{value:.0f}{one}"


def three(value: float) -> str:
    """Three significant digits without trailing zeros after the point, never in exponents for everyday sizes."""
    if value == 0:
        return "0"
    text = f"{value:.{max(0, 2 - magnitude(value))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def magnitude(value: float) -> int:
    """The power of ten of the first digit: 4321 -> 3."""
    return int(f"{abs(value):.2e}".split("e")[1])


def flops(value: float | None) -> str:
    """1.234e15 -> "1.23 × 10¹⁵"."""
    if value is None:
        return NOTHING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × {power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """15 -> "10¹⁵"."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def share(value: float | None) -> str:
    """0.9731 -> "97.3%"."""
    return number(value, ".1%")


def number(value: float | None, form: str = ".3f") -> str:
    return NOTHING if value is None else format(value, form)


def exact(value: float | None) -> str:
    """951424 -> "951,424"."""
    return number(value, ",.0f")


def kept(value: float | None) -> str:
    """What is left of the reference's score above chance, or that nothing is."""
    return NOTHING if value is None else "at or below chance" if value <= 0 else f"{share(value)} kept"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def p_value(p: float) -> str:
    """A p-value without false precision."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def ranges(indices: list[int]) -> str:
    """[0, 1, 2, 5] -> "0–2, 5"."""
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs(indices)) or "none"


def axis(name: str) -> str:
    """The units of an axis: "ffn" -> "MLP neurons"."""
    return next((known.words for known in AXES if known.name == name), name)
