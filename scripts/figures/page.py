"""Turn a table into a page of the report, which shows HTML but not tab-separated text."""

import argparse
import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clue.benchmark import tables
from clue.benchmark.errors import run_program
from clue.benchmark.files import atomic

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #262626; margin: 1.5em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.35em 0.8em; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd;
  overflow-wrap: anywhere; min-width: 5em; max-width: 26em; }}
th {{ border-bottom: 2px solid #262626; position: sticky; top: 0; background: white; }}
tr:hover td {{ background: #f4f4f4; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def render(table: pd.DataFrame, title: str) -> str:
    """Return the page."""
    with pd.option_context("display.max_colwidth", None):  # pandas cuts long text otherwise
        body = "<p>None.</p>" if table.empty else table.to_html(index=False, border=0, escape=True)
    return PAGE.format(title=html.escape(title), body=body)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, help="tab-separated table")
    parser.add_argument("--title", required=True, help="heading of the page")
    parser.add_argument("--page", required=True, type=Path, help="HTML to write")
    args = parser.parse_args(argv)
    page = render(tables.read_table(args.table, columns=()), args.title)
    with atomic(args.page) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
