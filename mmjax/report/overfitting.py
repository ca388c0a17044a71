"""Where train and val part: the step from which a run learns its train records by heart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mmjax.report import charts, frame
from mmjax.report.charts import number
from mmjax.report.run import Points, Run

MANY = 3  # evaluations of a metric that are needed to see a turn
LOSS_ROSE, SCORE_FELL, TRAIN_FELL = 0.02, 0.05, 0.02  # shares that are no noise
APART = 0.3  # by which the loss may be higher on val than on train at the end
SCORES = re.compile(r".*_(MRR|R@1|top1)")  # without slices; more is better
REMEDY = "more records, augmentation (Task.augment), weight_decay, a smaller model, or fewer steps"


class Turn(NamedTuple):
    """A metric that was best before the end, while the train loss went on falling."""

    metric: str
    best: tuple[float, float]  # step and value
    last: tuple[float, float]
    train: tuple[float, float]  # loss at the best step and at the end


def html(run: Run) -> str:
    """Losses of train and val side by side, and what they say; empty without evaluations."""
    drawn = "".join(
        charts.lines(f"Loss of {task}", {"train": train, "val": val})
        for task, train, val in _losses(run)
        if len(val) > 1
    )
    said = lines(run)
    if not said and not drawn:
        return ""
    items = "".join(f"<li>{frame.escape(text)}</li>" for text in said)
    told = f'<ul class="warnings card">{items}</ul>' if said else ""
    plain = '<p class="soft">No sign that val gets worse while train gets better.</p>'
    return f'{told or plain}<div class="charts">{drawn}</div>'


def lines(run: Run) -> list[str]:
    """Each sign that train and val part, and what to do."""
    said = []
    for turn in turns(run):
        (best, high), (last, low), (before, after) = turn.best, turn.last, turn.train
        said.append(
            f"{turn.metric} was best at step {best:,.0f} ({number(high)}) and is {number(low)} at"
            f" step {last:,.0f}, while the train loss fell from {number(before)} to"
            f" {number(after)}: from there on the run learns its train records by heart. Take the"
            f" checkpoint near step {best:,.0f} if it is kept, or train anew with {REMEDY}."
        )
    if said:
        return said
    for task, train, val in _losses(run):
        own, other = _near(train, train[-1][0]), val[-1][1]
        if other - own > max(APART * abs(own), 0.1):
            said.append(
                f"the loss of {task} is {number(own)} on train and {number(other)} on val at the"
                f" end: the run knows its train records better than others like them. Give it"
                f" {REMEDY}; `every` of the evaluators shows from which step on."
            )
    return said


def turns(run: Run) -> Iterator[Turn]:
    """Metrics of evaluators that got worse while the train loss went on falling."""
    losses = {m[1]: p for m, p in run.matching(r"train/([^/]+)/loss")}
    for name, steps in run.evals.items():
        if len(steps) < MANY:
            continue
        last = max(steps)
        for metric, end in steps[last].items():
            task = metric.removesuffix("/loss")
            is_loss = metric.endswith("/loss") and task in losses
            train = losses[task] if is_loss else run.points("train/loss")
            if not train or not (is_loss or SCORES.fullmatch(metric)):
                continue
            points = [(s, m[metric]) for s, m in sorted(steps.items()) if metric in m and s]
            if len(points) < MANY:
                continue
            best, value = (min if is_loss else max)(points, key=lambda p: p[1])
            room = LOSS_ROSE if is_loss else SCORE_FELL
            worse = (end - value) if is_loss else (value - end)
            fell = _near(train, best), _near(train, last)
            if worse > room * abs(value) and fell[1] < fell[0] - TRAIN_FELL * abs(fell[0]):
                yield Turn(f"{name}/{metric}", (best, value), (last, end), fell)


def _losses(run: Run) -> Iterator[tuple[str, Points, Points]]:
    """Tasks whose loss was measured on train and on val."""
    for match, train in run.matching(r"train/([^/]+)/loss"):
        for steps in run.evals.values():
            val = [
                (float(s), m[f"{match[1]}/loss"])
                for s, m in sorted(steps.items())
                if f"{match[1]}/loss" in m
            ]
            if val:
                yield match[1], train, val
                break


def _near(points: Points, step: float) -> float:
    """Mean of the three logged values that are nearest to a step."""
    near = sorted(points, key=lambda p: abs(p[0] - step))[:3]
    return sum(value for _, value in near) / len(near)
