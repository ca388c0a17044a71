"""A self-contained page that shows inputs and generated samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax import files
from mmjax.report import frame, gallery


def write(
    out: Path,
    given: Mapping[str, Any],
    want: Sequence[str],
    samples: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
) -> None:
    """Writes `index.html` into a folder of samples.

    Args:
      given: modality -> text, or the path of a file.
      samples: dicts with `index`, and `files` by modality.
    """
    rows = {"Given": given} if given else {}
    for sample in samples:
        rows[f"Sample {sample['index']}"] = {n: out / sample["files"][n] for n in want}
    shape = gallery.picture_shape(v for values in rows.values() for v in values.values())
    cells = [
        gallery.cell(title, [_card(name, v, shape) for name, v in values.items()])
        for title, values in rows.items()
    ]
    title = f"{', '.join(given) or 'nothing'} to {', '.join(want)}"
    main = f'<div class="gallery">{"".join(cells)}</div>'
    with files.replacing(out / "index.html") as partial:
        text = frame.page("generated samples", title, main, facts=_facts(request))
        partial.write_text(text, encoding="utf-8")


def _card(name: str, value: str | Path, shape: tuple[int, int]) -> str:
    caption = name if isinstance(value, str) else f"{name}: {value.name}"
    return gallery.card(gallery.show(name, value, shape), frame.escape(caption))


def _facts(request: Mapping[str, Any]) -> Iterator[str]:
    yield from (request["run"], f"step {request['step']}", f"seed {request['seed']}")
    for item in request["plan"]:
        steps = f" in {item['steps']} steps" if item["scheme"] != "autoregressive" else ""
        beams = f", {item['beams']} beams" if item["beams"] > 1 else ""
        beams += f" reranked at {item['rerank']:g}" if item["rerank"] else ""
        guided = f", guidance {item['guidance']:g}" if item["guidance"] != 1 else ""
        how = f"{item['scheme']}{steps}{beams}, temperature {item['temperature']:g}{guided}"
        yield f"{item['stream']}: {how}"
