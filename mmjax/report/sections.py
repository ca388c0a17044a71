"""The sections of the page: each returns HTML, empty if the run has no data for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.report import charts, frame
from mmjax.report.charts import number
from mmjax.report.run import Run
from mmjax.run import goodput
from mmjax.run import levels as levels_lib

ANCHORS = ("real", "codes", "trivial")  # reference rows, in place of a given modality
OPEN_ROWS = 16  # rows beyond this collapse a table


# ------------------------------------------------------------------------------- curves


def curves(run: Run) -> str:
    """Losses and accuracies by task and stream, speed, and evaluations during training."""
    loss = {m[1]: p for m, p in run.matching(r"train/([^/]+)/loss")}
    by_stream = {
        f"{m[1]}: {m[2]}": p for m, p in run.matching(r"train/([^/]+)/(?!loss)([^/]+)/loss")
    }
    right = {
        f"{m[1]}: {m[2]}".replace("_to_", " to "): p
        for m, p in run.matching(r"train/([^/]+)/([^/]+)/accuracy")
    }
    norm = {m[1]: p for m, p in run.matching(r"train/([^/]+)/grad_norm")}
    speed = {"steps a second": run.points("throughput/steps_per_second")}
    groups = {
        "Loss by task": loss,
        "Loss by stream": by_stream,
        "Accuracy in training": right,
        "Length of the gradient": norm,
        "Speed": speed if speed["steps a second"] else {},
    }
    groups |= dict(_evaluated(run))
    drawn = "".join(charts.lines(title, series) for title, series in groups.items() if series)
    return f'<div class="charts">{drawn}</div>' if drawn else ""


def _evaluated(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Evaluators with results at more than one step: their metrics, without slices."""
    for name, steps in run.evals.items():
        if len(steps) < 2:
            continue
        plain = rows_of(steps[max(steps)])
        series = {
            m: [(s, metrics[m]) for s, metrics in sorted(steps.items()) if m in metrics]
            for m in plain
        }
        yield f"Evaluation: {name}", dict(itertools.islice(series.items(), charts.COLOURS))


# ------------------------------------------------------------------------------- scores


def rows_of(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics as a table: `a_b` becomes column `b` of row `a` if there is a metric `a`."""
    rows: dict[str, dict[str, float]] = {}
    for name in sorted(metrics, key=len):
        base = next((r for r in rows if name.startswith(f"{r}_")), None)
        rows.setdefault(base or name, {})[name[len(base) + 1 :] if base else ""] = metrics[name]
    return {n: rows[n] for n in metrics if n in rows}


def scores(run: Run) -> str:
    """A table for each evaluator, with chance and simple methods, and what they say in words."""
    tables = [_table(run, name, metrics) for name, metrics in run.tables.items()]
    said = []
    for name, metrics in run.tables.items():
        found = run.simple(name)
        words = levels_lib.verdict(levels_lib.rows(metrics, found)) if found else []
        said += [f"{name}: {words[0]}", *words[1:]] if words else []
    notes = "".join(f"<li>{frame.escape(text)}</li>" for text in dict.fromkeys(said))
    notes = f'<ul class="soft">{notes}</ul>' if notes else ""
    return notes + "".join(sorted(tables, key=lambda t: t.startswith("<details")))


def _table(run: Run, name: str, metrics: Mapping[str, float]) -> str:
    rows = {n: r for n, r in rows_of(metrics).items() if n.partition("_to_")[0] not in ANCHORS}
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    levels = {n: run.chance(n) for n in rows}
    has_chance = any(v is not None for v in levels.values())
    simple = run.simple(name)
    head = "".join(
        f'<th scope="col">{frame.escape(c.replace("_", " ") or "all")}</th>' for c in columns
    )
    head += '<th scope="col">chance</th>' if has_chance else ""
    head += "".join(f'<th scope="col">{frame.escape(method)}</th>' for method in simple)
    body = []
    for row, cells in rows.items():
        shown = "".join(_score(cells.get(c), "R@" in row or has_chance) for c in columns)
        shown += f'<td class="soft">{number(levels[row])}</td>' if has_chance else ""
        shown += "".join(_level(cells.get(""), own.get(row), row) for own in simple.values())
        label = frame.escape(row.replace("_", " "))
        body.append(f'<tr><th scope="row">{label}</th>{shown}</tr>')
    table = (
        f'<thead><tr><th scope="col">metric</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
    )
    if len(rows) <= OPEN_ROWS:
        caption = f"<caption>{frame.escape(name)}</caption>"
        return f'<div class="scroll card"><table class="scores">{caption}{table}</table></div>'
    return (
        f'<details class="scroll card"><summary><b>{frame.escape(name)}</b>: {len(rows)} metrics'
        f'</summary><table class="scores">{table}</table></details>'
    )


def _level(score: float | None, level: float | None, metric: str) -> str:
    """What a simple method reaches; marked where the run is not above it."""
    if level is None:
        return "<td></td>"
    sign = -1 if levels_lib.is_loss(metric) else 1
    lost = score is not None and sign * score <= sign * level
    return f'<td class="{"bad" if lost else "soft"}">{number(level)}</td>'


def _score(value: float | None, is_share: bool) -> str:
    if value is None:
        return "<td></td>"
    if is_share and 0 <= value <= 1:
        return f'<td class="share" style="--v:{value:.3f}"><span>{value:.3f}</span></td>'
    return f"<td>{number(value)}</td>"


# ------------------------------------------------------------------------------- matrix


def generation(run: Run) -> tuple[dict[str, str], dict[str, float]]:
    """Wanted modality -> suffix of its metrics, in the config's order; and all metrics."""
    for name, metrics in run.tables.items():
        matches = (re.fullmatch(r"real_to_(.+)_([^_]+)", m) for m in metrics)
        wanted = {m[1]: m[2] for m in matches if m}
        if wanted:
            judges = run.config.get("evaluators", {}).get(name, {}).get("judges", {})
            order = [*(j for j in judges if j in wanted), *(w for w in wanted if w not in judges)]
            return {w: wanted[w] for w in order}, dict(metrics)
    return {}, {}


def cells(run: Run) -> dict[tuple[str, str], float]:
    """(given, wanted) -> score of the generation from one modality to another."""
    wanted, metrics = generation(run)
    given = [m.partition("_to_")[0] for m in metrics]
    given = [g for g in dict.fromkeys(given) if g not in ANCHORS]
    scores = {(g, w): metrics.get(f"{g}_to_{w}_{end}") for w, end in wanted.items() for g in given}
    return {pair: value for pair, value in scores.items() if value is not None}


def matrix(run: Run) -> str:
    """Generation from every modality to every other, and retrieval, as heat maps."""
    wanted, metrics = generation(run)
    out = ""
    if wanted:
        scores = cells(run)
        floor = {w: metrics.get(f"trivial_to_{w}_{end}", 0.0) for w, end in wanted.items()}

        def cell(w: str, value: float | None, warm: bool = True):
            if value is None:
                return None
            warmth = (value - floor[w]) / max(1 - floor[w], 1e-9) if warm else 0.0
            return f"{value:.2f}", min(max(warmth, 0.0), 1.0)

        rows = {
            g: [cell(w, scores.get((g, w))) for w in wanted]
            for g in dict.fromkeys((*wanted, *(g for g, _ in scores)))
            if any((g, w) in scores for w in wanted)
        }
        for name, label in zip(ANCHORS, ("real value", "its codes", "trivial answer"), strict=True):
            of = [metrics.get(f"{name}_to_{w}_{end}") for w, end in wanted.items()]
            rows[label] = [cell(w, v, False) for w, v in zip(wanted, of, strict=True)]
        levels = {w: run.chance(f"real_to_{w}_{end}") for w, end in wanted.items()}
        if any(v is not None for v in levels.values()):
            rows["chance"] = [cell(w, v, False) for w, v in levels.items()]
        columns = [f"{w} ({end})" for w, end in wanted.items()]
        caption = (
            "<b>Generation.</b> A row is given, a column generated and judged. Colour: how far"
            " above the best trivial answer. Below: what the judges say of real values, of real"
            " values after coding, of one answer for all, and of answers to other questions."
        )
        out += charts.heat(caption, "given", columns, rows)
    return out + _retrieval(run)


def _retrieval(run: Run) -> str:
    recalls: dict[tuple[str, str], float] = {}
    for metrics in run.tables.values():
        for name, value in metrics.items():
            if match := re.fullmatch(r"(.+)_to_(.+)_R@1", name):
                recalls[match[1], match[2]] = value
    names = list(dict.fromkeys(n for pair in recalls for n in pair))
    rows = {
        a: [(f"{recalls[a, b]:.2f}", recalls[a, b]) if (a, b) in recalls else None for b in names]
        for a in names
    }
    caption = "<b>Retrieval.</b> A row asks, a column is searched: share of first places (R@1)."
    return charts.heat(caption, "query", names, rows) if recalls else ""


# ---------------------------------------------------------------------------- conflicts


def conflicts(run: Run) -> str:
    """Cosines between the gradients of objectives, as a matrix; colour: how far they oppose."""
    cosines: dict[tuple[str, str], float] = {}
    for metrics in run.tables.values():
        for name, value in metrics.items():
            if match := re.fullmatch(r"(.+)_against_(.+)_cosine", name):
                cosines[match[1], match[2]] = cosines[match[2], match[1]] = value
    names = list(dict.fromkeys(n for pair in cosines for n in pair))
    rows = {
        a: [
            (f"{cosines[a, b]:+.2f}", min(max(-cosines[a, b], 0.0), 1.0))
            if (a, b) in cosines
            else None
            for b in names
        ]
        for a in names
    }
    caption = (
        "<b>Cosine between gradients.</b> Below 0 a step of one raises the loss of the other;"
        " colour: how far they oppose."
    )
    return charts.heat(caption, "objective", names, rows) if rows else ""


# --------------------------------------------------------------------------------- time


def time_budget(run: Run) -> str:
    """Where the time of all starts went, and the share that counts."""
    if not run.seconds:
        return ""
    starts = len(run.info.get("run", {}).get("starts") or [0])
    over = f"{starts} starts" if starts > 1 else "one start"
    title = f"{duration(sum(run.seconds.values()))} over {over}; goodput"
    return charts.shares(f"{title} {goodput.goodput(run.seconds):.0%}", run.seconds)


def duration(seconds: float) -> str:
    """A duration such as 7 min 59 s."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s"


# --------------------------------------------------------------------------------- data


def padding(run: Run, task: str = "[^/]+") -> float | None:
    """Share of batch slots that held no token."""
    slots = run.total(f"data/{task}/slots")
    return 1 - run.total(f"data/{task}/tokens") / slots if slots else None


def data(run: Run) -> str:
    """Padding, cut tokens, trimmed targets and bad records, by task."""
    tasks = dict.fromkeys(m[1] for m, _ in run.matching(r"data/([^/]+)/slots"))
    kinds = ("cut", "trimmed", "bad")
    body = []
    for task in tasks:
        empty = padding(run, re.escape(task))
        cells = [f"{100 * empty:.1f} %" if empty is not None else "&ndash;"]
        for kind in kinds:
            counts = {
                (m[1] or "").strip("/") or "all": sum(y for _, y in points)
                for m, points in run.matching(rf"data/{re.escape(task)}/{kind}[^/]*(/.*)?")
            }
            listed = ", ".join(f"{frame.escape(n)} {number(v)}" for n, v in counts.items() if v)
            cells.append(listed or "none")
        shown = "".join(f"<td>{c}</td>" for c in cells)
        body.append(f'<tr><th scope="row">{frame.escape(task)}</th>{shown}</tr>')
    if not body:
        return ""
    heads = ("task", "padding", "tokens cut (too long)", "targets trimmed", "bad records")
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    return (
        '<div class="scroll card"><table class="scores"><caption>Batches</caption><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
