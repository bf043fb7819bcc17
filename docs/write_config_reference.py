"""Write config/README.md from the configuration schema.

Run ``python docs/write_config_reference.py`` after a change of the schema; a test
compares the file with the schema.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
TARGET = ROOT / "config/README.md"

HEADER = """\
# Configuration reference

Generated from `workflow/schemas/config.schema.yaml`; do not edit by hand. Keys are
written as paths; `<name>` stands for a name of your choice. Unknown keys are errors.

| file | what it runs |
| --- | --- |
| `config.yaml` | the published run: Llama-3.1-8B and Qwen2.5-7B teach Gemma-2-9B |
| `demo.yaml` | the default: simulated pairs and tiny models, minutes on a CPU |
| `plan.yaml` | one teacher, short jobs on 32 GB cards, 4 bit |
| `small.yaml` | real small weights: SmolLM2-135M teaches itself |

Files combine from left to right: `--configfile config/demo.yaml mine.yaml`. A key of an
earlier file holds unless a later file sets it; `null` removes it.

| key | type | default | effect |
| --- | --- | --- | --- |
"""


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Merge a ``$ref`` with the keys beside it."""
    if "$ref" not in schema:
        return schema
    return {**root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], **schema}


def describe_type(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """Describe the allowed values in a short text."""
    schema = resolve(schema, root)
    if "anyOf" in schema:
        return " or ".join(describe_type(each, root) for each in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " \\| ".join(f"`{each}`" for each in schema["enum"] if each is not False)
    kind = schema.get("type", "object")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if "items" in schema:
        kind += f" of {describe_type(schema['items'], root)}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is not None:
        sign = "≥" if "minimum" in schema else ">"
        kind += f" {sign} {low}"
    if high is not None:
        kind += f" {'≤' if 'maximum' in schema else '<'} {high}"
    return kind


def rows(
    schema: dict[str, Any], root: dict[str, Any], path: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (key path, type, default, description) of every key below a schema."""
    schema = resolve(schema, root)
    children = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        children["<name>"] = schema["additionalProperties"]
    for name, child in children.items():
        child = resolve(child, root)
        key = f"{path}.{name}" if path else name
        default = child.get("default", "required" if name in schema.get("required", [])
                            else "")  # fmt: skip
        if default != "required" and default != "":
            default = f"`{json.dumps(default, ensure_ascii=False)}`"
        nested = "properties" in child or isinstance(
            child.get("additionalProperties"), dict
        )
        text = child.get("description", "")
        yield key, "section" if nested else describe_type(child, root), (
            "" if nested and default != "required" else default
        ), text  # fmt: skip
        yield from rows(child, root, key)


def render() -> str:
    """Write the whole reference as Markdown."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    lines = []
    for key, kind, default, text in rows(schema, schema):
        text = text.strip().replace("|", "\\|")
        lines.append(
            f"| `{key}` | {kind} | {default.replace('|', chr(92) + '|')} | {text} |"
        )
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
