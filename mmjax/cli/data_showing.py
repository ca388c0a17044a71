"""What `mmjax data check` found, as text and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax import console
from mmjax.data.reader import NAMED
from mmjax.modalities.modality import Modality
from mmjax.report import frame, gallery
from mmjax.typing import Piece

__all__ = ["bad", "card", "page", "text"]

HEADS = ("stream", "present", "values", "sizes", "room", "tokens", "padding", "cut")
Found = Mapping[str, Any]


def text(report: Found) -> str:
    """The report as text."""
    lines = []
    for source in report["sources"]:
        num_bad = source.get("num_bad", sum(map(len, source["bad"].values())))
        lines.append(
            f"{source['source']}, split {source['split']}: {source['records']:,} records,"
            f" {source['read']:,} read, {num_bad} bad   ({', '.join(source['tasks'])})"
        )
        for name, cells in _cells(source).items():
            lines.append(f"  {name:12} " + "   ".join(cell for cell in cells if cell))
        lines += [f"  bad: {line}" for line in bad(source)]
        lines += [f"  {line}" for line in _facts(source)]
    for heading, key in (
        ("proposed, by the split to train on", "proposed"),
        ("what it costs", "costs"),
        ("warnings", "warnings"),
    ):
        if report.get(key):
            lines += ["", f"{heading}:", *(f"  {line}" for line in report[key])]
    return console.visible("\n".join([*lines, *([report["path"]] if report["path"] else [])]))


def bad(source: Found) -> Iterator[str]:
    """A line for each reason for which records are bad."""
    for reason, keys in source["bad"].items():
        more = ", ..." if len(keys) > NAMED else ""
        yield f"{reason} in {', '.join(keys[:NAMED])}{more} ({source['details'][reason]})"


def _facts(source: Found) -> Iterator[str]:
    """Complete samples, copies and leaks of a split."""
    for task, count in source.get("complete", {}).items():
        yield f"task {task}: {count:,} of {source['read']:,} records are complete"
    for name, copies in source.get("copies", {}).items():
        named = ", ".join(f"{a} = {b}" for a, b in copies["names"])
        yield f"{name}: {copies['count']:,} of {copies['of']:,} are copies ({named})"
    for leak in source.get("leaks", []):
        named = ", ".join(f"{a} = {b}" for a, b in leak["names"])
        yield (
            f"{leak['what']}: {leak['count']:,} of {leak['of']:,} are also in {leak['split']}"
            f" ({named})"
        )


def _cells(source: Found) -> dict[str, list[str]]:
    """Presence, raw values, sizes, room, tokens, padding and cuts of each stream, as text."""
    cells = {}
    for name, s in source["streams"].items():
        tokens = s.get("tokens")
        lengths = "{min} to {max} tokens, mean {mean}, p95 {p95}".format(**tokens) if tokens else ""
        shape = " x ".join(map(str, s["shape"]))
        sizes = "; ".join(f"{size} {_quantiles(q)}" for size, q in s["sizes"].items())
        scripts = ", ".join(f"{script} {n}" for script, n in list(s["scripts"].items())[:8])
        spoken = ", ".join(f"{name} {share:.0%}" for name, share in [*s["languages"].items()][:8])
        more = len(s["languages"]) - 8
        languages = f"about {spoken}" + (f" and {more} more" if more > 0 else "") if spoken else ""
        cells[name] = [
            f"in {s['present']} of {source['read']}",
            ", ".join(s["values"]) or "-",
            "; ".join(filter(None, [sizes, scripts, languages])),
            f"room {shape}",
            lengths or "no tokens",
            "padding {:.0%} ({:.0%} of all)".format(*s["padding"]) if tokens else "",
            f"{s['cut']} cut" if s["cut"] else "none cut",
        ]
    return cells


def _quantiles(q: Found) -> str:
    names = ("min", "median", "p95", "p99", "max")
    return " / ".join(f"{q[name]:.4g}" for name in names)


# --------------------------------------------------------------------------- the page


def card(
    key: str,
    example: Mapping[str, Any],
    pieces: Mapping[str, Piece | None],
    modalities: Mapping[str, Modality],
    folder: Path,
) -> str:
    """A record as the model gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    notes = {}
    for name, piece in pieces.items():
        if piece is None:
            continue
        modality, notes[name] = modalities[name], f"{name}, {piece.length} tokens"
        try:
            values[name] = modality.write(modality.decode(piece), folder / name)
        except (ValueError, NotImplementedError):  # not shown: its size only
            values[name] = f"{piece.length} tokens"
        if changed := modality.adapted(example[modality.field or name]):
            notes[name] += f"; {changed}"
    shape = gallery.picture_shape(values.values())
    shown = "".join(
        f'{gallery.show(name, value, shape)}<p class="soft">{frame.escape(notes[name])}</p>'
        for name, value in values.items()
    )
    return gallery.card(shown, frame.escape(key))


def page(name: str, report: Found, cards: Sequence[Sequence[str]]) -> str:
    """The page, with the cards of each split."""
    blocks = [_lists(report)]
    for source, own in zip(report["sources"], cards, strict=True):
        heads = "".join(f'<th scope="col">{h}</th>' for h in HEADS)
        rows = "".join(
            f'<tr><th scope="row">{frame.escape(stream)}</th>'
            + "".join(f"<td>{frame.escape(cell)}</td>" for cell in cells) + "</tr>"
            for stream, cells in _cells(source).items()
        )  # fmt: skip
        items = {"Bad records": list(bad(source)) or ["none"], "Records": list(_facts(source))}
        lists = "".join(_list(title, lines) for title, lines in items.items() if lines)
        title = f"{source['source']}, split {source['split']}"
        facts = (
            f"{source['records']} records, {source['read']} read, for {', '.join(source['tasks'])}"
        )
        blocks.append(
            f'<section><h2>{frame.escape(title)}</h2><p class="soft">{frame.escape(facts)}</p>'
            '<div class="blocks"><div class="scroll card"><table class="scores">'
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
            f'{lists}<div class="gallery">'
            f"{gallery.cell('As the model gets them', own)}</div></div></section>"
        )
    return frame.page("data check", name, "".join(blocks))


def _lists(report: Found) -> str:
    """What is proposed, what it costs, and what is wrong."""
    titles = {"problems": "Problems", "warnings": "Warnings", "proposed": "Proposed sizes",
              "costs": "What they cost"}  # fmt: skip
    cards = [_list(title, report[key]) for key, title in titles.items() if report.get(key)]
    return f'<section><div class="blocks">{"".join(cards)}</div></section>' if cards else ""


def _list(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{frame.escape(line)}</li>" for line in lines)
    return f'<div class="card"><h3>{frame.escape(title)}</h3><ul>{items}</ul></div>'
