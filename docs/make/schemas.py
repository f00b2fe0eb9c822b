"""Write the tables of config/README.md: every key of a configuration with its type, default and meaning.

A table stands between ``<!-- schema: NAME -->`` and ``<!-- /schema -->`` and shows config/schemas/NAME.schema.yaml.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clue.benchmark.config import read_yaml
from clue.benchmark.files import atomic
from clue.benchmark.program import run_program

PAGE = Path("config", "README.md")
WORDS = {"object": "mapping", "array": "list"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
HEAD = ["| Key | Type | Default | Meaning |", "|---|---|---|---|"]


def main() -> None:
    """Run the program in the project folder."""
    text = PAGE.read_text()
    if (new := filled(text, Path())) != text:
        with atomic(PAGE) as temporary:
            temporary.write_text(new)
        print(f"wrote the tables of {PAGE}")


def filled(text: str, root: Path) -> str:
    """Return the page with its tables written anew from the schemas of a project folder."""

    def written(found: re.Match) -> str:
        schema = read_yaml(root / "config" / "schemas" / f"{found[1]}.schema.yaml")
        return f"<!-- schema: {found[1]} -->\n\n{Tables(schema).text()}\n\n<!-- /schema -->"

    return re.sub(r"^<!-- schema: (\w+) -->\n.*?^<!-- /schema -->$", written, text, flags=re.MULTILINE | re.DOTALL)


@dataclass
class Tables:
    """The tables of a schema: one of its keys, and one for each kind of a key that has kinds."""

    schema: dict
    known: dict[str, str] = field(default_factory=dict)
    """Where each definition was first described, so that it is not described again."""
    kinds: dict[str, dict] = field(default_factory=dict)
    """By key, the specifications that have other keys for each of their kinds."""

    def text(self) -> str:
        """Return the tables as Markdown."""
        parts = ["\n".join([*HEAD, *self.rows(self.schema, "")])]
        while self.kinds:
            key = next(iter(self.kinds))
            parts += [self._of_kind(key, name, then) for name, then in _kinds(self.kinds.pop(key))]
        return "\n\n".join(parts)

    def _of_kind(self, key: str, name: str, then: dict) -> str:
        rows = list(self.rows(then, ""))
        title = f"`{key}` of `kind: {name}`. {_escaped(then['description'])}."
        return "\n".join([title, *(["", *HEAD, *rows] if rows else [])])

    def rows(self, spec: dict, prefix: str) -> Iterator[str]:
        """Yield a row of Markdown for each key of a mapping, and for the keys within it."""
        for name, given in spec.get("properties", {}).items():
            if not given:
                continue  # `kind: {}` and the like repeat a key that is described with all kinds
            key, whole = f"{prefix}{name}", self.resolved(given)
            default = "required" if name in spec.get("required", ()) else _json(whole)
            meaning = _escaped(whole.get("description", ""))
            place, content = _within(whole, given, key)
            definition = content.get("$ref", "").rpartition("/")[2]
            if place and definition in self.known:
                meaning, place = f"{meaning}; as `{self.known[definition]}`".removeprefix("; "), ""
            yield "| " + " | ".join([f"`{key}`", self.type(whole), default or "–", meaning or "–"]) + " |"
            if place:
                self.known |= {definition: place.rstrip(".")} if definition else {}
                content = self.resolved(content)
                self.kinds |= {place.rstrip("."): content} if _kinds(content) else {}
                yield from self.rows(content, place)

    def resolved(self, spec: dict) -> dict:
        """Merge a specification with the definition that it refers to; its own entries take precedence."""
        if "$ref" not in spec:
            return spec
        target = self.schema["$defs"][spec["$ref"].rpartition("/")[2]]
        return self.resolved(target) | {name: value for name, value in spec.items() if name != "$ref"}

    def type(self, spec: dict, ending: str = "") -> str:
        """Return a short text that says which values are allowed; `ending` makes a plural."""
        if "const" in spec:
            return f"`{spec['const']}`"
        if "type" not in spec and "oneOf" in spec:
            return " or ".join(self.type(self.resolved(choice), ending) for choice in spec["oneOf"])
        if "enum" in spec:
            return " ".join(f"`{value}`" for value in spec["enum"])
        kinds = spec.get("type", "object")
        names = [WORDS.get(kind, kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]
        said = " or ".join(name + ending for name in names)
        of = spec.get("items") or spec.get("additionalProperties")
        if isinstance(of, dict) and of:
            said += f" of {self.type(self.resolved(of), 's')}"
        return " ".join([said, *(f"{sign} {spec[limit]}" for limit, sign in LIMITS.items() if limit in spec)])


def _within(whole: dict, given: dict, key: str) -> tuple[str, dict]:
    """Return the prefix of the keys within a value, and what describes them; both are empty if it has none."""
    if whole.get("properties"):
        return f"{key}.", given
    for name, place in (("items", f"{key}[]."), ("additionalProperties", f"{key}.<name>.")):
        inner = whole.get(name)
        if isinstance(inner, dict) and (inner.get("properties") or "$ref" in inner):
            return place, inner
    return "", {}


def _escaped(text: str) -> str:
    """Return text with angle brackets and bars escaped for Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _kinds(spec: dict) -> list[tuple[str, dict]]:
    """Return each kind with the specification of its further keys."""
    cases = [case for case in spec.get("allOf", ()) if "kind" in case.get("if", {}).get("properties", {})]
    return [(case["if"]["properties"]["kind"]["const"], case["then"]) for case in cases]


def _json(spec: dict) -> str:
    """Return the default of a key; empty if its description says what holds without it."""
    if "default" not in spec or spec["default"] == "":
        return ""
    return f"`{json.dumps(spec['default'], ensure_ascii=False)}`"


if __name__ == "__main__":
    run_program(main)
