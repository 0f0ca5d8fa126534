"""One HTML page with all it needs inside, in light and dark, on a phone and on a desk."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from dmsflow.errors import printable
from dmsflow.terminal import is_number

GENERATOR = '<meta name="generator" content="dmsflow report">'  # says in a page's head who wrote it
# The page asks for nothing, and runs nothing: a browser that reads this line would refuse.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; @LIGHT@ }
@media (prefers-color-scheme: dark) { :root { @DARK@ } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
a { color: var(--series1); }
nav a { display: inline-block; padding: .25rem .75rem .25rem 0; }
figure { margin: .75rem 0; }
figcaption { color: var(--soft); max-width: 46rem; margin-top: .5rem; }
.panels { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.panels.small { gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(max(10rem, 22%), 1fr)); }
.panels svg { display: block; width: 100%; max-width: 30rem; height: auto; }
.panels.small svg { max-width: 18rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, sans-serif !important; white-space: pre; }
.table { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
th { font-weight: 600; }
thead th { color: var(--soft); }
td:first-child, th:first-child { white-space: normal; min-width: 9.5rem; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.facts th { color: var(--soft); }
@media (min-width: 48rem) { tbody td:first-child { min-width: 20rem; } }
@media (max-width: 48rem) {
  .table thead { display: none; }
  .table table, .table caption, .table tbody, .table tr, .table td, .facts th { display: block; min-width: 0; }
  .table tr { border-bottom: 1px solid var(--rule); padding: .35rem 0; }
  .table td, .facts th { border: 0; padding: 0; white-space: normal; overflow-wrap: anywhere; }
  .table td[data-head] { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  .table td[data-head]::before { content: attr(data-head); color: var(--soft); white-space: nowrap; text-align: left; }
  .table td:first-child { font-weight: 600; }
  .facts td:nth-child(2) { font-weight: 400; }
}
pre { overflow-x: auto; margin: .5rem 0; padding: .5rem; border: 1px solid var(--rule); font-size: .8125rem; }
summary { cursor: pointer; padding: .25rem 0; }
"""
DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="@POLICY@">
<meta name="viewport" content="width=device-width, initial-scale=1">
@GENERATOR@
@REFRESH@<link rel="icon" href="data:,">
<title>@TITLE@</title>
<style>@STYLE@</style>
</head>
<body>
@BODY@
</body>
</html>
"""


def escape(text: str) -> str:
    """Text of any origin between tags or in an attribute: markup and control characters are shown, not followed."""
    return html.escape(printable(text))


def document(title: str, colours: Mapping[str, tuple[str, str]], body: Iterable[str], reload_s: int = 0) -> str:
    """The whole page.

    Args:
        colours: the light and dark values of the variables that its figures name.
        reload_s: a browser loads it again after so many seconds; 0: never.
    """
    light, dark = (" ".join(f"--{name}: {pair[mode]};" for name, pair in colours.items()) for mode in (0, 1))
    style = STYLE.replace("@LIGHT@", light).replace("@DARK@", dark)
    parts = {"POLICY": POLICY, "GENERATOR": GENERATOR, "TITLE": escape(title), "STYLE": style, "BODY": "\n".join(body)}
    parts["REFRESH"] = f'<meta http-equiv="refresh" content="{reload_s}">\n' if reload_s else ""
    return re.sub("@([A-Z]+)@", lambda name: parts[name[1]], DOCUMENT)


def is_report(content: bytes) -> bool:
    """Whether a file was written by `document`."""
    return GENERATOR.encode() in content[:2000]


def heading(level: int, text: str, anchor: str = "") -> str:
    name = f' id="{escape(anchor)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def figure(drawings: Iterable[str], caption: str, label: str, *, small: bool = False) -> str:
    """Drawings side by side, as many as there is room for; the caption says what to see in them."""
    kind, content = "panels small" if small else "panels", "\n".join(drawings)
    return (
        f'<figure aria-label="{escape(label)}">\n<div class="{kind}">\n{content}\n</div>\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def table(caption: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of cells by their heads, the same heads in each; columns of numbers are aligned right.

    Where it is too wide it scrolls within itself; on a phone every row is a block of its own, of heads and cells.
    """
    cells = [["–" if cell is None else str(cell) for cell in row.values()] for row in rows]
    numeric = [all(cell == "–" or is_number(cell) for cell in column) for column in zip(*cells, strict=True)]

    heads, kinds = list(rows[0]), [" class=number" * right for right in numeric]
    names = ["", *(f' data-head="{escape(head)}"' for head in heads[1:])]
    top = "".join(f"<th scope=col{kind}>{escape(head)}</th>" for head, kind in zip(heads, kinds, strict=True))
    lines = []
    for row in cells:
        parts = zip(kinds, names, row, strict=True)
        lines.append("".join(f"<td{kind}{name}>{escape(cell)}</td>" for kind, name, cell in parts))
    return _framed("table", caption, f"<thead><tr>{top}</tr></thead>\n", lines)


def facts(caption: str, rows: Mapping[str, str]) -> str:
    """A table of labels and values, whose values may be sentences."""
    lines = [f"<th scope=row>{escape(label)}</th><td>{escape(value)}</td>" for label, value in rows.items()]
    return _framed("table facts", caption, "", lines)


def _framed(kind: str, caption: str, head: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n{head}<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def details(summary: str, text: str) -> str:
    """Text as it is, shown on demand."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def listing(items: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"


def contents(links: Iterable[tuple[str, str]]) -> str:
    """Links to the page's own sections: (anchor, title)."""
    return "<nav>" + "".join(f'<a href="#{escape(anchor)}">{escape(title)}</a> ' for anchor, title in links) + "</nav>"
