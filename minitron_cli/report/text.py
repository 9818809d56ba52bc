"""Numbers as people read them."""

from minitron_cli.spec.axes import AXES


def count(value: float | None) -> str:
    """4_512_746_496 -> "4.51B", 832_128 -> "832K": three digits and a unit."""
    if value is None:
        return "–"
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= 0.9995 * factor:
            return f"{three(value / factor)}{unit}"
    return f"{value:.0f}"


def three(value: float) -> str:
    """Three significant digits without trailing zeros behind the point, never in exponents for everyday sizes."""
    if value == 0:
        return "0"
    digits = max(0, 2 - magnitude(value))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def magnitude(value: float) -> int:
    """The power of ten of the first digit: 4321 -> 3."""
    return int(f"{abs(value):.2e}".split("e")[1])


def flops(value: float | None) -> str:
    """1.234e15 -> "1.23 × 10¹⁵"."""
    if value is None:
        return "–"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × {power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """15 -> "10¹⁵"."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def share(value: float | None) -> str:
    """0.9731 -> "97.3%"."""
    return "–" if value is None else f"{value:.1%}"


def number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def size(num_bytes: float | None) -> str:
    """1_234_567 -> "1.23 MB": decimal units, as disks and checkpoints are quoted."""
    if num_bytes is None:
        return "–"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= factor:
            return f"{three(num_bytes / factor)} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def p_value(p: float) -> str:
    """A p-value without false precision."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def axis_words(axis: str) -> str:
    """What the units of an axis are called: "query heads"."""
    return next((known.words for known in AXES if known.name == axis), axis)
