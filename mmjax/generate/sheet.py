"""The sheet: what was given and made, on one page that needs nothing else."""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 5_000_000  # of a given file that is put into the page

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6a7076; --paper: #f6f6f4;
  --card: #fff; --line: #dcdcd8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --soft: #9aa0a6; --paper: #17181a;
  --card: #212326; --line: #36393d } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 .25rem }
h2 { font-size: 1rem; font-weight: 600; margin: 2rem 0 .75rem }
p { margin: 0 } .soft { color: var(--soft); font-size: .875rem }
.row { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)) }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; display: flex; flex-direction: column; gap: .75rem }
figcaption { color: var(--soft); font-size: .8125rem; margin-top: auto; overflow-wrap: anywhere }
img { width: 100%; max-height: 20rem; object-fit: contain; image-rendering: pixelated }
audio { width: 100% }
.said { font-size: 1.25rem; overflow-wrap: anywhere }
pre { margin: 0; font-size: .8125rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""


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
      samples: with `index`, and `files` by modality.
    """
    title = f"{', '.join(given) or 'nothing'} to {', '.join(want)}"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p class=soft>{html.escape(_about(request))}</p>",
    ]
    if given:
        parts += ["<h2>Given</h2>", _row([_card(v, name) for name, v in given.items()])]
    for sample in samples:
        parts.append(f"<h2>Sample {sample['index']}</h2>")
        parts.append(_row([_card(out / sample["files"][name], name) for name in want]))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )
    partial = out / ".index.html"
    partial.write_text(page, encoding="utf-8")
    partial.replace(out / "index.html")


def _about(request: Mapping[str, Any]) -> str:
    items = []
    for item in request["plan"]:
        steps = f" in {item['steps']} steps" if item["scheme"] != "autoregressive" else ""
        guided = f", guidance {item['guidance']:g}" if item["guidance"] != 1 else ""
        how = f"{item['scheme']}{steps}, temperature {item['temperature']:g}{guided}"
        items.append(f"{item['stream']}: {how}")
    run = f"{request['run']}, step {request['step']}, seed {request['seed']}"
    return "; ".join([run, *items])


def _row(cards: Sequence[str]) -> str:
    return f'<div class="row">{"".join(cards)}</div>'


def _card(content: str | Path, name: str) -> str:
    caption = name if isinstance(content, str) else f"{name}: {content.name}"
    shown = _shown(content, name)
    return f"<figure>{shown}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _shown(content: str | Path, name: str) -> str:
    """A picture, a player, text, or nothing but the name of a file."""
    if isinstance(content, str):
        return f'<p class="said">{html.escape(content) or "(empty)"}</p>'
    kind = mimetypes.guess_type(content.name)[0] or ""
    if content.suffix == ".txt":
        return _shown(content.read_text(encoding="utf-8"), name)
    if content.suffix == ".json":
        return f"<pre>{html.escape(content.read_text(encoding='utf-8'))}</pre>"
    if not kind.startswith(("image/", "audio/")) or content.stat().st_size > MAX_BYTES:
        return '<p class="soft">(not shown)</p>'
    source = f"data:{kind};base64,{base64.b64encode(content.read_bytes()).decode()}"
    if kind.startswith("image/"):
        return f'<img src="{source}" alt="{html.escape(name, quote=True)}">'
    return f'<audio controls src="{source}"></audio>'
