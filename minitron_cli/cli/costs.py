"""Tables of what a chain will take, and of what it took beside the estimate."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.cli.common import bytes_text, count_text, say, table
from minitron_cli.errors import MinitronError

# By these a dry run makes hours of FLOPs: the bfloat16 peak of an H100, and a usual share of it.
GPU_TFLOPS, MFU = 989.0, 0.4
GPU_WORDS = ("peak of one GPU, for the hours of --dry-run", "share of that peak that training reaches")

_TIMES = {"d": 86400.0, "h": 3600.0, "min": 60.0}


def seconds_text(seconds: float) -> str:
    """A duration as people read it: 93 -> "1.6 min"."""
    for unit, length in _TIMES.items():
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"


def hours_at(flops: float, tflops: float, mfu: float) -> float:
    """Hours of one GPU that reaches `mfu` of its peak."""
    if not (tflops > 0 and 0 < mfu <= 1):
        raise MinitronError(
            f"--gpu-tflops {tflops:g} and --mfu {mfu:g} are not a speed", "a peak above 0, and a share of it in (0, 1]"
        )
    return flops / (tflops * 1e12 * mfu) / 3600


def hours_text(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def show_plan(facts: Mapping[str, Any]) -> None:
    """What a dry run has found: every step's cost, and what finished steps took."""
    steps = facts["steps"]
    rows = [[s["step"], s["action"], s["reason"], *_costs(s), _took(s)] for s in steps]
    todo = [s for s in steps if s["action"] != "done"]
    total: dict[str, Any] = {key: sum(s[key] for s in todo) for key in ("tokens", "flops", "gpu_hours", "disk_bytes")}
    total |= {"parameters": None, "memory_bytes": max((s["memory_bytes"] for s in todo), default=0)}
    columns = ["step", "action", "why", "makes", "tokens", "FLOPs", "GPU hours", "memory", "disk", "took"]
    table(columns, [*rows, ["to do", "", "", *_costs(total), ""]])
    say(facts["assumed"])


def _took(step: Mapping[str, Any]) -> str:
    return seconds_text(step["seconds"]) if step["action"] == "done" and step["seconds"] else ""


def _costs(step: Mapping[str, Any]) -> list[str]:
    return [
        count_text(step["parameters"]) if step["parameters"] else "",
        count_text(step["tokens"]) if step["tokens"] else "",
        f"{step['flops']:.1e}" if step["flops"] else "",
        hours_text(step["gpu_hours"]) if step["flops"] else "",
        bytes_text(step["memory_bytes"]) if step["memory_bytes"] else "",
        bytes_text(step["disk_bytes"]) if step["disk_bytes"] else "",
    ]


def show_took(family: Mapping[str, Any]) -> None:
    """What each finished step took, with the estimate in brackets where it differs."""
    rows = []
    for step in family["steps"]:
        real, forecast = step["took"], step["forecast"]
        if not real:  # made by a version that did not count
            rows.append([step["step"], seconds_text(step["seconds"]), *[""] * 6])
            continue
        rate = f"{real['flops'] / step['seconds']:.1e}" if real["flops"] and step["seconds"] else ""
        rows.append([
            step["step"], seconds_text(step["seconds"]),
            _pair(real, forecast, "tokens", count_text), _pair(real, forecast, "flops", "{:.2e}".format), rate,
            memory_text(real, forecast),
            _pair(real, forecast, "disk_bytes", bytes_text), bytes_text(real["all_bytes"]),
        ])  # fmt: skip
    table(["step", "took", "tokens", "FLOPs", "FLOP/s", "memory", "weights", "on disk"], rows)


def _pair(real: Mapping[str, Any], forecast: Mapping[str, Any], key: str, show: Any) -> str:
    if not real[key]:
        return ""
    foreseen = forecast.get(key)
    return show(real[key]) + (f" ({show(foreseen)})" if foreseen and foreseen != real[key] else "")


def memory_text(real: Mapping[str, Any], forecast: Mapping[str, Any]) -> str:
    """Memory of a GPU beside its estimate; of the host, which includes interpreter and libraries, alone."""
    return _pair(real, forecast, "memory_bytes", bytes_text) or bytes_text(real["host_bytes"])
