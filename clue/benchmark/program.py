"""Run a function as a program: its signature gives the command line, its docstring the help."""

import argparse
import inspect
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from clue.benchmark.errors import exit_on_error

Result = TypeVar("Result")


def run_program(main: Callable[..., Result], argv: Sequence[str] | None = None) -> Result:
    """Call `main` with the arguments of a command line. A `BenchmarkError` ends the process (`exit_on_error`).

    Parameters
    ----------
    main
        The program; see `command_line`.
    argv
        The command line; None means that of the process.
    """
    return exit_on_error(lambda: main(**vars(command_line(main).parse_args(argv))))


def command_line(main: Callable) -> argparse.ArgumentParser:
    """Return the parser of a program's command line, from its function or from a class of its arguments.

    Each parameter becomes an option: ``max_cells`` becomes ``--max-cells``. A parameter without a default is required.
    A list takes several words and a ``bool`` takes none; a dict is given as JSON; any other type is called with one
    word. The docstring of the function's module, or of the class, says what the program does, and the docstring of the
    function what its parameters mean, unless their names say it.
    """
    about = main.__doc__ if isinstance(main, type) else main.__globals__["__doc__"]
    parser = argparse.ArgumentParser(description=about.partition("\n\n")[0])
    meanings = _meanings(inspect.getdoc(main) or "")
    for name, parameter in inspect.signature(main, eval_str=True).parameters.items():
        needed = parameter.default is parameter.empty
        option: dict[str, Any] = {"required": True} if needed else {"default": parameter.default}
        kind = parameter.annotation
        if isinstance(kind, UnionType):
            kind = get_args(kind)[0]  # the other is None
        if kind is bool:
            option["action"] = "store_true"
        elif get_origin(kind) in (list, tuple):
            option |= {"type": get_args(kind)[0], "nargs": "+" if needed else "*"}
        else:
            option["type"] = json.loads if dict in (kind, get_origin(kind)) else kind
        parser.add_argument(f"--{name.replace('_', '-')}", help=meanings.get(name), **option)
    return parser


def _meanings(text: str) -> dict[str, str]:
    """Return the meaning of each parameter from a docstring."""
    found = re.findall(r"^(\w+(?:, \w+)*)\n((?: {4}.+\n?)+)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()).rstrip(".") for names, meaning in found for name in names.split(", ")}


# ---- what a program imports ----------------------------------------------------------------------


def imported(program: str, root: Path) -> set[str]:
    """Return the files of a program and of this project's modules that it imports, directly or indirectly.

    Paths are relative to `root`. Imports inside functions and under ``if TYPE_CHECKING`` do not count. Of
    clue.benchmark only the tools for methods count: the rest runs methods, and editing it changes no result.
    """
    found, left = set(), {program}
    while left:
        found.add(path := left.pop())
        left |= _imports(path, root) - found
    return found


@cache
def _imports(path: str, root: Path) -> set[str]:
    found = set()
    for module, name in re.findall(
        r"^(?:from|import) ([\w.]+)(?: import (\w+))?", (root / path).read_text(encoding="utf-8"), re.MULTILINE
    ):
        if not re.match(r"clue(?!\.benchmark(?!\.methods))|scripts\.", module):
            continue
        if module == "clue":  # it imports its modules only when they are used
            found |= {str(file.relative_to(root)) for file in root.glob("clue/*.py")}
        for each in (module, f"{module}.{name}"):
            place = each.replace(".", "/")
            found |= {file for file in (f"{place}.py", f"{place}/__init__.py") if (root / file).is_file()}
    return found
