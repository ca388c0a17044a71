"""The frame of every page that mmjax writes: self-contained, without network access."""

from __future__ import annotations

import html
from collections.abc import Iterable
from importlib import resources

from mmjax import console

# A page may load only its own content.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def escape(text: str) -> str:
    """Untrusted text as HTML: tags escaped, control and direction characters spelled out."""
    return html.escape(console.visible(text))


def page(kind: str, title: str, main: str, *, facts: Iterable[str] = (), nav: str = "") -> str:
    """A whole page, in light and dark mode. `main` and `nav` are HTML, the rest plain text."""
    kind, title = escape(kind), escape(title)
    style = resources.files("mmjax.report").joinpath("style.css").read_text()
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    line = f'<p class="facts">{line}</p>' if line else ""
    links = f'<nav aria-label="Sections">{nav}</nav>' if nav else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title} &middot; mmjax {kind}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header><p class="kind">mmjax &middot; {kind}</p><h1>{title}</h1>{line}</header>
{links}
<main>
{main}
</main>
</body>
</html>
"""
