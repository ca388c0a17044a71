"""The section of the experts: warnings, balance by layer, and who uses which expert."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmjax.report import charts, frame
from mmjax.report.run import Run
from mmjax.run import experts as experts_lib

NAMED = 32  # experts beyond so many have cells without numbers
BALANCE = {  # metric of a layer -> heading
    "load_max": "busiest",
    "load_min": "idlest",
    "entropy": "entropy",
    "dead": "dead",
    "overflow": "dropped",
}


class Table(NamedTuple):
    """What `experts.json` holds: steps, and tokens by layer, stream and expert."""

    steps: tuple[int, int]
    streams: list[str]
    layers: list[tuple[str, list[list[float]]]]  # (name, [M][E])


def experts(run: Run) -> str:
    """Warnings, the load of the busiest expert by stream and layer, balance, the whole table."""
    return _warned(run) + _busiest(run) + _balance(run) + _table(run)


def warnings(run: Run) -> list[str]:
    """What the alarms of the run say, a line a kind."""
    said = []
    for kind in experts_lib.ALARMS:
        points = run.points(f"moe/alarm/{kind}")
        fired = [(step, count) for step, count in points if count > 0]
        if fired:
            step, count = fired[-1]
            layers = f"{count:.0f} layer{'s' * (count != 1)} at step {step:.0f}"
            where = [f"in {len(fired)} of {len(points)} logs", f"last {layers}"]
            said.append(experts_lib.warning(kind, where))
    return said


def _warned(run: Run) -> str:
    lines = "".join(f"<li>{frame.escape(text)}</li>" for text in warnings(run))
    return f'<ul class="warnings card">{lines}</ul>' if lines else ""


def _busiest(run: Run) -> str:
    loads: dict[str, dict[int, float]] = {}
    for match, points in run.matching(r"moe/layer_(\d+)/(?:([^/]+)/)?load_max"):
        last = [y for _, y in points[-5:]]
        loads.setdefault(match[2] or "all together", {})[int(match[1])] = sum(last) / len(last)
    layers = sorted({layer for row in loads.values() for layer in row})
    most = max((v for row in loads.values() for v in row.values()), default=1.0)
    rows = {
        name: [
            (f"{row[n]:.2f}", (row[n] - 1) / max(most - 1, 1e-9)) if n in row else None
            for n in layers
        ]
        for name, row in sorted(loads.items(), key=lambda item: item[0] != "all together")
    }
    caption = (
        "<b>Load of the busiest expert</b>, in fair shares (1 = all alike), mean of the last five"
        " logs. A stream that is far from 1 has experts of its own."
    )
    return charts.heat(caption, "stream", [f"layer {n}" for n in layers], rows) if rows else ""


def _balance(run: Run) -> str:
    found: dict[int, dict[str, float]] = {}
    for match, points in run.matching(rf"moe/layer_(\d+)/({'|'.join(BALANCE)})"):
        found.setdefault(int(match[1]), {})[match[2]] = points[-1][1]
    columns = [name for name in BALANCE if any(name in row for row in found.values())]
    if not {"entropy", "dead", "overflow"} & set(columns):
        return ""

    def cell(name: str, value: float | None):
        share = name in ("dead", "overflow")
        return None if value is None else (f"{100 * value:.1f} %" if share else f"{value:.2f}", 0.0)

    rows = {
        f"layer {n}": [cell(name, found[n].get(name)) for name in columns] for n in sorted(found)
    }
    caption = (
        "<b>Balance</b> in the steps before the last log: busiest and idlest expert in fair shares,"
        " entropy of the load (1 = even), experts with less than 1 % of a fair share, and, where"
        " experts have limited room, tokens that were dropped."
    )
    return charts.heat(caption, "layer", [BALANCE[name] for name in columns], rows)


def _table(run: Run) -> str:
    """A panel a stream: layers as rows, experts as columns."""
    table, out = read(run.experts), ""
    if table is None:
        return ""
    width = max(len(load_ME[0]) for _, load_ME in table.layers)
    for m, stream in enumerate(table.streams):
        rows = {}
        for name, load_ME in table.layers:
            total = sum(load_ME[m])
            shares = [x * len(load_ME[m]) / total for x in load_ME[m]] if total else []
            shown = [
                ("" if width > NAMED else f"{x:.1f}", min(x / experts_lib.BUSY, 1.0))
                for x in shares
            ]
            rows[name] = shown + [None] * (width - len(shown))
        if any(cell for row in rows.values() for cell in row):
            caption = f"<b>Experts of {frame.escape(stream)}</b>"
            out += charts.heat(caption, "expert", [str(e) for e in range(width)], rows)
    first, last = table.steps
    said = (
        f"Who uses which expert, steps {first} to {last}: load in fair shares of the stream; full"
        f" colour = {experts_lib.BUSY:g} or more."
    )
    return f'<div class="dense"><p class="soft">{said}</p>{out}</div>' if out else ""


def read(document: dict[str, Any]) -> Table | None:
    """The table in the document of `experts.json`; None if it is of another form than ours."""
    steps, streams = _list(document.get("steps"), int), _list(document.get("streams"), str)
    layers = []
    for layer in _list(document.get("layers"), dict):
        load_ME = [_list(row, (int, float)) for row in _list(layer.get("load"), list)]
        widths = {len(row) for row in load_ME}
        good = len(load_ME) == len(streams) and len(widths) == 1 and min(widths) > 0
        if not good or not all(0 <= x < 1e15 for row in load_ME for x in row):
            return None
        layers.append((f"layer {layer.get('layer')} ({layer.get('where')})", load_ME))
    return Table((steps[0], steps[1]), streams, layers) if len(steps) == 2 and layers else None


def _list(value: Any, kind: Any) -> list[Any]:
    """A list of values of a kind (a truth value is no number); empty if it is anything else."""
    good = isinstance(value, list) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in value
    )
    return value if good else []
