"""Writes docs/settings.md: every setting of every stage, from the records themselves."""

from __future__ import annotations

from pathlib import Path

from msgspec import inspect

from dmsflow.options import RECORDS, peel_type

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """\
# Settings

<!-- Written by docs/settings_page.py from dmsflow/settings.py: edit that, then run `make docs`. -->

Every setting has a default. `--preset`, `--effort`, `--set`, an environment variable or an option can change it. If
several of them do, the last one in this list wins. The [manifest](manifest.md) of a stage records every value.
[Concepts](concepts.md) explains the terms of this page; settings that begin with *Published* are for `--preset paper`.

    dmsflow search --preset digits --set search.rounds=12 --set search.batch_size=32 --out runs/a
    dmsflow run --preset mine.toml --out runs/b

A preset is a TOML file with a table for each stage: `[search]`, `[train]`, `[export]` and `[bench]`.

```toml
[search]
rounds = 32

[train]
epochs = 60
```

`--effort` multiplies the lengths in the preset. `quick` takes half of the rounds, half of the steps in each, and a
quarter of the epochs. `long` takes twice the rounds, four times the weight steps and twice the width batches in each,
and eight times the epochs.
"""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for record, kind in RECORDS.items():
        rows = ["| setting | default | option | what it does |", "|---|---|---|---|"]
        for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
            _, meta = peel_type(field.type)
            option = f"`--{'dataset' if (record, field.name) == ('data', 'name') else field.name.replace('_', '-')}`"
            default = field.default if field.default is not None else "–"
            rows.append(
                f"| `{record}.{field.name}` | {default} | {option if meta.get('option', True) else ''} | {meta['description']} |"
            )
        parts.append(f"## {record}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
