"""Charts as inline SVG and HTML; colours come from the style sheet, for light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mmjax.report import frame

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 26
COLOURS = 8
MANY = 10  # columns from which on those of a heat map are narrow, so that a page shows them all
Points = Sequence[tuple[float, float]]


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return "&ndash;"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.3f}" if size >= 0.001 else f"{value:.0e}"


def lines(title: str, series: Mapping[str, Points], note: str = "") -> str:
    """Curves over steps, with their last values in the legend; log scale for wide ranges."""
    values = [y for points in series.values() for _, y in points]
    positive = min(values) > 0
    log = positive and max(values) / min(values) > 30
    scale_x = _Scale.of([x for p in series.values() for x, _ in p], LEFT, WIDTH - RIGHT)
    scale_y = _Scale.of(values, HEIGHT - BOTTOM, TOP, log=log, from_zero=positive and not log)
    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(v)}</text>'
        for v, y in scale_y.ticks()
    ]
    grid += [
        f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(v)}</text>'
        for v, x in scale_x.ticks()
    ]
    curves, legend = [], []
    for i, (name, points) in enumerate(series.items()):
        kind = f"c{i % COLOURS}" + (" dashed" if i >= COLOURS else "")
        at = [(scale_x(x), scale_y(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        curves.append(f'<polyline class="{kind}" points="{path}"/>')
        curves.append(f'<circle class="{kind}" cx="{at[-1][0]:.1f}" cy="{at[-1][1]:.1f}" r="3"/>')
        legend.append(
            f'<li class="{kind}"><i></i>{frame.escape(name)} <b>{number(points[-1][1])}</b></li>'
        )
    names = frame.escape(", ".join(series))
    about = f"log scale{'; ' if note else ''}{note}" if log else note
    more = f" <small>{frame.escape(about)}</small>" if about else ""
    return (
        f'<figure class="chart card"><figcaption>{frame.escape(title)}{more}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{frame.escape(title)} over'
        f' steps: {names}"><g class="grid">{"".join(grid)}</g>{"".join(curves)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


class _Scale:
    """Maps values to coordinates, linearly or logarithmically."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool):
        self.low, self.high, self.log = low, high, log
        self.start, self.stop = start, stop

    @classmethod
    def of(cls, values, start, stop, *, log=False, from_zero=False) -> _Scale:
        low, high = min(values), max(values)
        low = min(low, 0.0) if from_zero else low
        if high <= low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        return cls(low, high, start, stop, log)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[tuple[float, float]]:
        """Round values in the range, with their coordinates."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [10.0**p for p in powers]
            if sum(self.low <= v <= self.high for v in values) < 3:
                values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 5
            power = 10 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            values = [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(v, self(v)) for v in values if self.low <= v <= self.high * (1 + 1e-9)]


def heat(
    caption: str,
    corner: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[tuple[str, float] | None]],
) -> str:
    """A table of cells (text, warmth in 0..1), coloured by warmth; None = empty."""
    head = "".join(f'<th scope="col">{frame.escape(c)}</th>' for c in columns)
    body = []
    for name, cells in rows.items():
        shown = "".join(
            '<td class="none"></td>'
            if cell is None
            else f'<td class="{_text_colour(cell[1])}" style="--v:{cell[1]:.3f}">{cell[0]}</td>'
            for cell in cells
        )
        body.append(f'<tr><th scope="row">{frame.escape(name)}</th>{shown}</tr>')
    kind = "heat many" if len(columns) > MANY else "heat"
    return (
        f'<figure class="scroll card"><figcaption class="wide">{caption}</figcaption>'
        f'<table class="{kind}"><thead><tr><th scope="col">{frame.escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></figure>"
    )


def _text_colour(warmth: float) -> str:
    """CSS class that keeps a cell's text legible, in dark and light mode."""
    return "warm" * (warmth > 0.55) + " hot" * (warmth > 0.68)


def shares(caption: str, parts: Mapping[str, float], unit: str = "s") -> str:
    """A stacked bar, with a legend of amounts and shares."""
    total = sum(parts.values()) or 1.0
    bar = "".join(
        f'<i class="c{i % COLOURS}" style="width:{100 * v / total:.2f}%"></i>'
        for i, v in enumerate(parts.values())
    )
    legend = "".join(
        f'<li class="c{i % COLOURS}"><i></i>{frame.escape(name)} <b>{v:,.1f} {unit}</b>'
        f" <small>{100 * v / total:.0f} %</small></li>"
        for i, (name, v) in enumerate(parts.items())
    )
    return (
        f'<figure class="budget card"><figcaption>{frame.escape(caption)}</figcaption>'
        f'<div class="bar" aria-hidden="true">{bar}</div><ul class="legend">{legend}</ul></figure>'
    )
