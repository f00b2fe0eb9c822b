"""Run the tutorials and write their pages: docs/tutorials/NAME.py becomes NAME.md and its pictures.

A tutorial is a Python file in cells: ``# %%`` begins code, and ``# %% [markdown]`` begins text, whose lines are all
comments. Many editors run it as a notebook.
"""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic
from clue.benchmark.methods.record import commit
from clue.benchmark.program import run_program

TUTORIALS = Path("docs", "tutorials")
DPI = 80
COLOURS = 128


def main(only: tuple[str, ...] = ()) -> None:
    """Run the program in the project folder.

    Parameters
    ----------
    only
        Tutorials to run; all if none is named.
    """
    for source in sorted(TUTORIALS.glob("*.py")):
        if not only or source.stem in only:
            write(source)
            print(f"wrote {source.with_suffix('.md')}")


def write(source: Path) -> None:
    """Run a tutorial and write its page and its pictures beside it."""
    blocks = list(run(source))
    for picture in source.parent.glob(f"{source.stem}-*.png"):
        if not any(f"]({picture.name})" in block for block in blocks):
            picture.unlink()  # of an earlier version of the tutorial
    made = f"`make tutorials` ran [{source.name}]({source.name})"
    blocks.append(f"*{made} at commit {commit() or 'unknown'}.*")
    with atomic(source.with_suffix(".md")) as temporary:
        temporary.write_text("\n\n".join(blocks) + "\n")


def cells(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind of each cell of a tutorial, ``markdown`` or ``code``, and its content."""
    for mark, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text, re.MULTILINE | re.DOTALL):
        if "[markdown]" in mark:
            yield "markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()
        else:
            yield "code", body.strip()


def run(source: Path) -> Iterator[str]:
    """Run a tutorial; yield its cells as Markdown, each with what it printed and drew."""
    plt.close("all")  # figures that others have left open do not belong to the tutorial
    names: dict = {"__name__": source.stem}
    n_pictures = 0
    for i, (kind, body) in enumerate(cells(source.read_text()), start=1):
        if kind == "markdown":
            yield body
            continue
        yield f"```python\n{body}\n```"
        try:
            with redirect_stdout(io.StringIO()) as printed:
                exec(compile(body, f"{source}, cell {i}", "exec"), names)
        except Exception as error:  # a cell may raise anything; the line says which one did
            raise BenchmarkError(f"{source}: cell {i}: {type(error).__name__}: {error}") from error
        if said := printed.getvalue().rstrip():
            yield f"```text\n{said}\n```"
        for number in plt.get_fignums():
            n_pictures += 1
            picture = source.with_name(f"{source.stem}-{n_pictures}.png")
            figure = plt.figure(number)
            yield f"![{figure.get_label() or 'What the code above draws'}]({picture.name})"
            save(figure, picture)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a small picture, with a palette, and close the figure."""
    with io.BytesIO() as whole, atomic(path) as temporary:
        figure.savefig(whole, dpi=DPI)
        Image.open(whole).convert("RGB").quantize(COLOURS).save(temporary, format="PNG", optimize=True)
    plt.close(figure)


if __name__ == "__main__":
    run_program(main)
