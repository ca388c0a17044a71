"""The page: header, summary, and the sections for which the run has data."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mmjax import console
from mmjax.config import short_names
from mmjax.report import experts, frame, gallery, overfitting, sections
from mmjax.report.charts import number
from mmjax.report.run import Run

SECTIONS = {  # title -> (message if it is empty, function that makes it)
    "Samples": ("no samples/: the run has not generated anything yet", lambda r: _samples(r)),
    "From everything to everything": ("no evaluation between modalities", sections.matrix),
    "Scores": ("no evals/: `mmjax eval` writes them", sections.scores),
    "Hits and misses": ("", lambda r: gallery.hits(r.samples)),  # of retrieval alone
    "Train and val": ("", overfitting.html),
    "Curves": ("no metrics.jsonl: the run has logged no step", sections.curves),
    "Conflicts": ("", sections.conflicts),  # few runs measure them
    "Experts": ("no load of experts in the metrics: the model is dense", experts.experts),
    "Time": ("no times in the metrics: an earlier version wrote them", sections.time_budget),
    "Data": ("no counts of batches in the metrics", sections.data),
}


def html(run: Run) -> str:
    """The whole page."""
    escape = frame.escape
    made = {title: make(run) for title, (_, make) in SECTIONS.items()}
    links = "".join(f'<a href="#{_anchor(t)}">{escape(t)}</a>' for t, text in made.items() if text)
    blocks = "".join(
        f'<section id="{_anchor(t)}"><h2>{escape(t)}</h2><div class="blocks">{text}</div></section>'
        for t, text in made.items()
        if text
    )
    lacking = [said for t, text in made.items() if not text and (said := SECTIONS[t][0])]
    missing = "".join(f"<li>{escape(f'{text}.')}</li>" for text in lacking)
    lines = "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in summary(run))
    main = f"""<section id="summary"><h2>In short</h2>
<dl class="summary card">{lines}</dl></section>
{blocks}
{f'<section><h2>Not here</h2><ul class="soft">{missing}</ul></section>' if missing else ""}
{_about(run)}"""
    return frame.page("run report", run.name, main, facts=_facts(run), nav=links)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _facts(run: Run) -> Iterator[str]:
    """Step, parameters, modalities, time, hardware."""
    step, total = run.info.get("step"), run.config.get("total_steps")
    if step is not None:
        yield f"step {step:,}" + (f" of {total:,}" if total and total != step else "")
    if "parameters" in run.info:
        yield f"{run.info['parameters'] / 1e6:.2f} M parameters"
    if run.config.get("modalities"):
        yield f"{len(run.config['modalities'])} streams: {', '.join(run.config['modalities'])}"
    if time := run.last_start.get("time"):
        yield time.replace("T", " ").removesuffix("+00:00") + " UTC"
    if devices := run.last_start.get("devices"):
        yield f"{devices}, {run.last_start.get('cpu_cores')} CPU cores"


def summary(run: Run) -> list[tuple[str, str]]:
    """At most eleven (label, text) lines about a run."""
    return [line for line in _summary(run) if line[1]]


def summary_lines(run: Run) -> list[str]:
    """The summary for a terminal."""
    rows = summary(run)
    width = max((len(a) for a, _ in rows), default=0)
    return [console.visible(f"{a:{width}}  {b}") for a, b in rows]


def _summary(run: Run) -> Iterator[tuple[str, str]]:
    parts = run.info.get("parameters_by_part", {})
    count = run.info.get("parameters", 0)
    split = ", ".join(f"{n} {100 * v / count:.0f} %" for n, v in parts.items()) if count else ""
    yield "Model", f"{count:,} parameters: {split}" if count else ""
    tasks = run.config.get("tasks", {})
    steps, of = run.info.get("step"), run.config.get("total_steps")
    yield "Training", f"{steps} of {of} steps over {', '.join(tasks)}" if steps is not None else ""
    yield "Time", _time(run)
    if loss := run.points("train/loss"):
        (first, high), (_, low) = loss[0], loss[-1]
        yield "Loss", f"{number(high)} at step {first}, {number(low)} at the end"
    yield from _generation(run)
    yield "Retrieval", _retrieval(run)
    yield "Experts", _experts(run)
    yield "Overfitting", next(iter(overfitting.lines(run)), "")
    yield "Health", _health(run)


def _time(run: Run) -> str:
    if not run.seconds:
        return ""
    total = sum(run.seconds.values())
    most = sorted(run.seconds.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {100 * s / total:.0f} %" for name, s in most)
    speed = run.points("throughput/steps_per_second")
    pace = f"; {number(speed[-1][1])} steps a second at last" if speed else ""
    return f"{sections.duration(total)} ({shares}){pace}"


def _generation(run: Run) -> Iterator[tuple[str, str]]:
    wanted, metrics = sections.generation(run)
    cells = sections.cells(run)
    if not cells:
        return

    def say(pair: tuple[str, str]) -> str:
        given, to = pair
        floor = metrics.get(f"trivial_to_{to}_{wanted[to]}")
        more = f" (trivial answer {floor:.2f})" if floor is not None else ""
        return f"{given} to {to}, {wanted[to]} {cells[pair]:.2f}{more}"

    def skill(pair: tuple[str, str]) -> float:
        floor = metrics.get(f"trivial_to_{pair[1]}_{wanted[pair[1]]}", 0.0)
        return (cells[pair] - floor) / max(1 - floor, 1e-9)

    yield "Best cell", say(max(cells, key=skill))
    yield "Weakest cell", say(min(cells, key=skill))
    real = {w: metrics.get(f"real_to_{w}_{end}") for w, end in wanted.items()}
    doubtful = [f"{w} {v:.3f}" for w, v in real.items() if v is not None and v < 1]
    yield "Judges", f"on real values: {', '.join(doubtful)}" if doubtful else ""


def _retrieval(run: Run) -> str:
    names = [n for metrics in run.tables.values() for n in metrics if n.endswith("R@1")]
    values = {n: next(m[n] for m in run.tables.values() if n in m) for n in names}
    if not values:
        return ""
    chance = run.chance(names[0])
    level = f", chance {chance:.2f}" if chance is not None else ""
    simple = [run.simple(name).get("ridge", {}) for name in run.tables]
    ridge = [own[metric] for own in simple for metric in own if metric in values]
    level += f", ridge {min(ridge):.2f} to {max(ridge):.2f}" if ridge else ""
    low, high = min(values.values()), max(values.values())
    return f"R@1 {low:.2f} to {high:.2f} over {len(values)} directions{level}"


def _experts(run: Run) -> str:
    loads = {m[1]: p[-1][1] for m, p in run.matching(r"moe/layer_(\d+)/load_max")}
    if not loads:
        return ""
    layer = max(loads, key=lambda n: loads[n])
    busiest = f"the busiest has {loads[layer]:.2f} fair shares (layer {layer} of {len(loads)})"
    return "; warning: ".join([busiest, *(text.rstrip(".") for text in experts.warnings(run))])


def _health(run: Run) -> str:
    skipped = run.total(r"train/[^/]+/skipped")
    cut, trimmed = run.total(r"data/[^/]+/cut/.*"), run.total(r"data/[^/]+/trimmed/.*")
    bad, padding = run.total(r"data/[^/]+/bad.*"), sections.padding(run)
    if padding is None:
        return ""
    steps = "no step skipped" if not skipped else "steps were skipped: not finite"
    return (
        f"{steps}, {number(bad)} bad records, padding {100 * padding:.0f} %,"
        f" {number(cut)} tokens cut, {number(trimmed)} targets trimmed"
    )


def _samples(run: Run) -> str:
    made = [entry for entry in run.samples if not gallery.is_retrieved(entry)]
    return gallery.gallery(made) if made else ""


def _about(run: Run) -> str:
    """Versions and the config, collapsed."""
    start = run.last_start
    versions = {"mmjax": start.get("mmjax"), "python": start.get("python")}
    versions |= start.get("packages", {})
    shown = ", ".join(f"{n} {v}" for n, v in versions.items() if v)
    config = frame.escape(json.dumps(short_names(run.config), indent=1))
    return (
        f'<section><h2>How it was made</h2><p class="soft">{frame.escape(shown)}</p>'
        f"<details><summary>The resolved config</summary><pre>{config}</pre></details></section>"
    )
