"""The JSON schema of run files, for editors and forms."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from st.settings.config import CHOICES, SECTIONS, RunOptions, section_options

if TYPE_CHECKING:
    from st.options import Options
    from st.registrar import Strategy
    from st.settings.reference import Described

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run_file_schema(described: Described) -> dict[str, Any]:
    """The schema of run files in which these plugins are active."""
    from st.data.dataset import DatasetOptions
    from st.train.updates.groups import GroupOptions

    registrar = described.registrar
    classes: list[type[Options]] = [
        RunOptions,
        DatasetOptions,
        GroupOptions,
        *(section_options(name) for name in SECTIONS),
    ]
    classes += [cls.Options for _, cls in described.plugins] + [
        found.options for found in registrar.strategies() if found.kind != "update_kind"
    ]
    classes += [cls for found in registrar.strategies() if (cls := _store_options(found)) is not None]
    unique = list(dict.fromkeys(classes))
    references, document = models_json_schema([(cls, "validation") for cls in unique])
    definitions = document["$defs"]

    def of(cls: type[Options]) -> dict[str, Any]:
        name = references[cls, "validation"]["$ref"].rpartition("/")[2]
        found: dict[str, Any] = deepcopy(definitions[name])
        return found

    properties: dict[str, Any] = of(RunOptions)["properties"]
    for installed, cls in described.plugins:
        if installed.kind != "backends":
            properties["model" if installed.kind == "models" else installed.name] = of(cls.Options)
    dataset = of(DatasetOptions)
    for strategy in registrar.strategies():
        if strategy.kind == "backend":
            dataset["properties"] |= of(strategy.options).get("properties", {})
    properties["dataset"] = {"type": "array", "items": dataset}
    for kind, default in CHOICES.items():
        variants = [
            _with_kind(of(strategy.options), strategy.name, required=strategy.name != default)
            for strategy in registrar.strategies()
            if strategy.kind == kind
        ]
        # Not oneOf: a section without a kind may fit the default and others alike.
        properties[kind] = {"anyOf": variants} if variants else {"type": "object"}
        if kind == "optimizer":
            for variant in variants:
                variant["properties"]["groups"] = {"type": "array", "items": of(GroupOptions)}
    properties |= {name: of(section_options(name)) for name in SECTIONS}
    for strategy in registrar.strategies():
        if (store_options := _store_options(strategy)) is not None:
            properties["cache"]["properties"] |= of(store_options).get("properties", {})
    return {
        "$schema": DIALECT,
        "title": "A run file of st",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _store_options(strategy: Strategy) -> type[Options] | None:
    """What [cache] may hold where its url names this strategy."""
    backend: Any = strategy.build
    found: type[Options] | None = backend.StoreOptions if strategy.kind == "backend" else None
    return found


def _with_kind(schema: dict[str, Any], kind: str, *, required: bool) -> dict[str, Any]:
    schema["properties"] = {"kind": {"const": kind}, **schema.get("properties", {})}
    if required:
        schema["required"] = ["kind", *schema.get("required", [])]
    return schema
