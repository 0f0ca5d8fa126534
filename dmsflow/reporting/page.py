"""One HTML page with all it needs inside, in light and dark, on a phone and on a desk."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dmsflow.errors import printable
from dmsflow.terminal import is_number

GENERATOR = '<meta name="generator" content="dmsflow report">'  # says in a page's head who wrote it
# The page asks for nothing, and runs nothing: a browser that reads this line would refuse.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
DOCUMENT = Path(__file__).with_name("page.html")


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
    refresh = f'<meta http-equiv="refresh" content="{reload_s}">\n' if reload_s else ""
    parts = {"POLICY": POLICY, "GENERATOR": GENERATOR, "TITLE": escape(title), "REFRESH": refresh}
    parts |= {"LIGHT": light, "DARK": dark, "BODY": "\n".join(body)}
    return re.sub("@([A-Z]+)@", lambda name: parts[name[1]], DOCUMENT.read_text("utf-8"))


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
