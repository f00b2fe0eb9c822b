"""config/README.md agrees with the schemas: every key, with its type, default and meaning."""

import re

import pytest
import yaml

SCHEMAS = ("config", "dataset", "method", "display")


@pytest.fixture(scope="module")
def program(document_programs):
    return document_programs("schemas.py")


@pytest.fixture(scope="module")
def page(project) -> str:
    return (project / "config" / "README.md").read_text()


def keys(spec) -> set[str]:
    """Return the names of all keys of a schema, at any depth."""
    if isinstance(spec, list):
        return set().union(*map(keys, spec)) if spec else set()
    if not isinstance(spec, dict):
        return set()
    own = set(spec["properties"]) if isinstance(spec.get("properties"), dict) else set()
    return own.union(*(keys(value) for value in spec.values()))


def test_page_is_up_to_date_with_the_schemas(program, page, project):
    assert program.filled(page, project) == page, "run `make tables`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_has_a_row(page, project, name):
    schema = yaml.safe_load((project / "config" / "schemas" / f"{name}.schema.yaml").read_text())
    table = page.partition(f"<!-- schema: {name} -->")[2].partition("<!-- /schema -->")[0]
    shown = {key.rpartition(".")[2] for key in re.findall(r"^\| `([^`]*)` \|", table, re.MULTILINE)}
    assert shown == keys(schema)


def test_row_states_type_default_and_meaning(program):
    size = {"type": "integer", "minimum": 1, "default": 4, "description": "Of <each> | all"}
    schema = {"required": ["names"], "properties": {"size": {"$ref": "#/$defs/size"}}, "$defs": {"size": size}}
    schema["properties"] |= {"names": {"type": "array", "items": {"type": "string"}}, "end": {"enum": ["a", "b"]}}
    assert program.Tables(schema).text().splitlines()[2:] == [
        r"| `size` | integer ≥ 1 | `4` | Of &lt;each> \| all |",
        "| `names` | list of strings | required | – |",
        "| `end` | `a` `b` | – | – |",
    ]


def test_kinds_have_their_own_tables_and_definitions_are_described_once(program):
    case = {"if": {"properties": {"kind": {"const": "web"}}}, "then": {"description": "Far", "properties": {"url": {}}}}
    case["then"]["properties"]["url"] = {"type": "string"}
    place = {"type": "object", "properties": {"kind": {"enum": ["web"]}}, "allOf": [case]}
    schema = {"$defs": {"place": place}, "properties": {"here": {"$ref": "#/$defs/place"}}}
    schema["properties"]["more"] = {"type": "array", "items": {"$ref": "#/$defs/place"}}
    text = program.Tables(schema).text()
    assert "| `here.kind` | `web` | – | – |" in text and "| `more` | list of mappings | – | as `here` |" in text
    assert text.count("`here` of `kind: web`. Far.") == text.count("| `url` |") == 1


def test_page_lists_every_run(page, project):
    for path in (project / "config").glob("*.yaml"):
        assert f"`config/{path.name}`" in page, f"config/README.md: say what {path.name} is for"
