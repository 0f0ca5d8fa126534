"""The pictures of README.md and docs/concepts.md, as SVG that fits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

from figures import Row, mean

BAR, GAP, TALL, LEFT, TOP = 26, 26, 150, 12, 40  # in pixels: bars, between layers, the tallest bar, margins
STYLE = """\
<style>
text { font: 13px system-ui, sans-serif; fill: #24292f; } .small { font-size: 11px; }
.uniform { fill: #afb8c1; } .searched { fill: #0969da; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .uniform { fill: #57606a; } .searched { fill: #58a6ff; } }
</style>"""


def draw_widths(uniform: Row, searched: Row) -> str:
    """Two rows of table1-long.json, uniform and searched: for each layer a pair of bars, as tall as its channels."""
    pairs = list(zip(uniform["jobs"][0]["widths"], searched["jobs"][0]["widths"], strict=True))
    most = max(map(max, pairs))
    width, floor = 2 * LEFT + len(pairs) * (2 * BAR + GAP), TOP + 20 + TALL
    parts = [_legend(LEFT, "uniform", uniform), _legend(LEFT + width // 2, "searched", searched)]
    for layer, pair in enumerate(pairs):
        left = LEFT + layer * (2 * BAR + GAP)
        for index, (kind, channels) in enumerate(zip(("uniform", "searched"), pair, strict=True)):
            tall = round(TALL * channels / most)
            x, y = left + index * (BAR + 2), floor - tall
            parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{BAR}" height="{tall}"/>')
            parts.append(_text(x + BAR / 2, y - 4, str(channels), "small", "middle"))
        parts.append(_text(left + BAR + 1, floor + 16, f"conv{layer}", "small", "middle"))
    title = f"Channels of each layer: uniform {_numbers(pairs, 0)}; searched {_numbers(pairs, 1)}"
    return _page(width, floor + 26, title, parts)


def draw_front(cells: Sequence[Row]) -> str | None:
    """Of front.json: top-1 against milliseconds on a device, searched and uniform widths; None before all are there."""
    lines = {
        kind: [(mean(rows, "predicted_latency_ms"), mean(rows, "top1_percent")) for rows in found]
        for kind in ("uniform", "searched")
        if all(found := [cell["methods"][kind] for cell in cells])
    }
    if len(lines) < 2:
        return None
    device, points = cells[0]["profile"], [point for line in lines.values() for point in line]
    (left, right), (low, high) = ((min(each), max(each)) for each in zip(*points, strict=True))
    width, tall, x0, y0 = 480, 200, 46, 34

    def place(ms: float, top1: float) -> tuple[float, float]:
        return x0 + width * (ms - left) / (right - left or 1), y0 + tall * (1 - (top1 - low) / (high - low or 1))

    parts = [_text(0, 14, f"top-1 %, against milliseconds on {device}, at most {cells[0]['memory_mib']:g} MiB")]
    for at, (kind, line) in enumerate(lines.items()):
        for x, y in (place(*point) for point in line):
            parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<rect class="{kind}" x="{x0 + 110 * at}" y="{y0 + tall + 38}" width="12" height="12"/>')
        parts.append(_text(x0 + 110 * at + 18, y0 + tall + 49, kind))
    parts += [_text(0, place(left, top1)[1] + 4, f"{top1:.1f}", "small") for top1 in (low, high)]
    parts += [
        _text(place(ms, low)[0], y0 + tall + 24, f"{ms:.3f} ms", "small", anchor)
        for ms, anchor in ((left, "start"), (right, "end"))
    ]
    title = "; ".join(f"{kind}: " + ", ".join(f"{x:.3f} ms {y:.1f} %" for x, y in line) for kind, line in lines.items())
    return _page(x0 + width + 12, y0 + tall + 58, f"Top-1 against milliseconds on {device}: {title}", parts)


def draw_mask(mean: float = 24.0, scale: float = 2.5, channels: int = 48) -> str:
    """How present each channel of a width is: P(width > k) of a logistic distribution (Eq. 4-6)."""
    step, tall, left, top = 11, 110, 34, 26
    parts = [
        _text(0, top + 4, "1", "small"),
        _text(0, top + tall + 4, "0", "small"),
        _text(left, 14, "presence of channel k"),
    ]
    for k in range(channels):
        present = 1 / (1 + math.exp((k + 0.5 - mean) / scale))
        height = max(round(tall * present), 1)
        x, y = left + k * step, top + tall - height
        parts.append(f'<rect class="searched" x="{x}" y="{y}" width="{step - 2}" height="{height}"/>')
    x = left + mean * step - 1
    parts.append(f'<rect class="uniform" x="{x:g}" y="{top - 6}" width="2" height="{tall + 6}"/>')
    parts.append(_text(x + 6, top + 4, f"μ = {mean:g} channels", "small"))
    parts += [
        _text(left + k * step + step / 2, top + tall + 16, str(k), "small", "middle") for k in range(0, channels, 8)
    ]
    return _page(
        left + channels * step + 10, top + tall + 24, "A mask over channels that falls from 1 to 0 around μ", parts
    )


def draw_words(channels: int = 40) -> str:
    """The bits of some channels in words of 32."""
    step, parts = 16, [_text(0, 14, f"{channels} input channels, in two words of 32 bits")]
    for bit in range(64):
        kind = "searched" if bit < channels else "uniform"
        x, y = bit % 32 * step, 24 + bit // 32 * 24
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{step - 2}" height="18"/>')
    parts.append(_text(0, 88, f"{64 - channels} bits of the second are padding: 64 channels would cost no more"))
    return _page(32 * step, 98, f"{channels} of 64 bits are used", parts)


def _page(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return "\n".join((head, f"<title>{title}</title>", STYLE, *parts, "</svg>")) + "\n"


def _legend(x: int, kind: str, row: Row) -> str:
    facts = f"{kind}: {mean(row['jobs'], 'top1_percent'):.1f} % top-1, {mean(row['jobs'], 'memory_mib'):.3f} MiB"
    return f'<rect class="{kind}" x="{x}" y="6" width="12" height="12"/>{_text(x + 18, 17, facts)}'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{f" class={chr(34)}{kind}{chr(34)}" * bool(kind)}>{text}</text>'


def _numbers(pairs: Sequence[tuple[int, int]], index: int) -> str:
    return " ".join(str(pair[index]) for pair in pairs)
