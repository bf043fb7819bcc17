"""Configurations for tests: the shipped ones and the defaults, with changes."""

from pathlib import Path
from typing import Any

import yaml

from prefdistill.pipeline.config_schema import fill_defaults, validate_config
from prefdistill.settings import (
    BaseModelSettings,
    InferenceSettings,
    PostPretrainSettings,
    Settings,
    TrainingSettings,
    read,
)

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
SECTIONS = {
    BaseModelSettings: "base_model",
    TrainingSettings: "training",
    PostPretrainSettings: "post_pretrain",
    InferenceSettings: "inference",
}


def shipped(name: str) -> dict[str, Any]:
    """Read a shipped configuration, without defaults."""
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


def overlaid(base: Any, overlay: Any) -> Any:
    """Lay an overlay over a configuration, as Snakemake does it."""
    if not (isinstance(base, dict) and isinstance(overlay, dict)):
        return overlay
    merged = {key: overlaid(base.get(key), overlay[key]) for key in overlay}
    return base | merged


def configured(name: str, **changes: Any) -> Settings:
    """Read a shipped configuration with changes and with all defaults."""
    config = overlaid(shipped(name), changes)
    return read(Settings, validate_config(config, SCHEMA))


def section(kind: type, **changes: Any) -> Any:
    """Build a section's class from its defaults and changes."""
    schema = SCHEMA["$defs"][SECTIONS[kind]]
    return read(kind, fill_defaults(changes, schema, SCHEMA))
