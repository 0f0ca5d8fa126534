"""Writes TFLite files: the dicts that `tflite.parse_model` gives back, as a FlatBuffer."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmsflow.modelfile.tflite import IDENTIFIER, OPTIONS, SCALARS, SCHEMA

ALIGNMENT = 16  # of the constants, so that kernels may load them with SIMD instructions


def dumps(model: dict[str, Any]) -> bytes:
    """The bytes of a file; `model` holds the fields of a Model, nested, those that are set."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(_write_table(builder, "Model", model), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _write_table(builder: Any, kind: str, fields: dict[str, Any]) -> int:
    """Write what a table points to, then the table; its offset."""
    schema = SCHEMA[kind]
    offsets = {name: _write_field(builder, schema, fields, name) for name in fields if schema[name] not in SCALARS}
    builder.StartObject(len(schema))
    for slot, (name, form) in enumerate(schema.items()):
        if name in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[name], 0)
        elif name in fields:
            builder.ForceDefaults(True)  # a default that is left out is not the same one in every field
            kind = np.dtype(SCALARS[form]).name.capitalize()  # "u8" is Uint8, "f32" Float32
            getattr(builder, f"Prepend{kind}Slot")(slot, fields[name], 0)
            builder.ForceDefaults(False)
    return int(builder.EndObject())


def _write_field(builder: Any, schema: dict[str, str], fields: dict[str, Any], name: str) -> int:
    """Write a field that a table points to; its offset."""
    form, value = schema[name], fields[name]
    if form == "str":
        return int(builder.CreateString(value))
    if form == "union":
        return _write_table(builder, OPTIONS[fields[f"{name}_type"]], value)
    if form == "[u8]":
        builder.StartVector(1, len(value), ALIGNMENT)
        builder.head -= len(value)
        builder.Bytes[builder.head : builder.head + len(value)] = value
        return int(builder.EndVector())
    if not form.startswith("["):
        return _write_table(builder, form, value)
    if form.strip("[]") in SCALARS:
        return int(builder.CreateNumpyVector(np.asarray(value, f"<{SCALARS[form.strip('[]')]}")))
    offsets = [_write_table(builder, form.strip("[]"), item) for item in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def flexible(fields: dict[str, int]) -> bytes:
    """Options of a custom operator: a FlexBuffer map."""
    from flatbuffers import flexbuffers

    return bytes(flexbuffers.Dumps(fields))
