"""JSON schemas of bodies: of the models that read them, and of messages in protobuf's JSON."""

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from pydantic import BaseModel

Schema: TypeAlias = dict[str, Any]

_F = FieldDescriptor
_SCALARS: Mapping[int, Schema] = {
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_DOUBLE: {"type": "number"},
    _F.TYPE_FLOAT: {"type": "number"},
    _F.TYPE_INT32: {"type": "integer"},
    _F.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    _F.TYPE_INT64: {"type": "string", "description": "a 64-bit integer"},
    _F.TYPE_UINT64: {"type": "string", "description": "a 64-bit integer"},
}
_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.rpc.Status": {"type": "object", "required": ["code"], "properties": {"code": {"type": "integer"}}},
}


class Schemas:
    """Schemas by name, as they are referred to."""

    def __init__(self) -> None:
        self.named: dict[str, Schema] = {}

    def of(self, kind: type[BaseModel] | type[Message], *, written: bool = False) -> Schema:
        """A reference to the schema of a body. `written`: it is a response, in which fields of no presence are set."""
        if issubclass(kind, Message):
            return self._message(cast(Descriptor, kind.DESCRIPTOR), written)
        name = f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        self.named.update(schema.pop("$defs", {}))
        self.named[name] = schema
        return _reference(name)

    def _message(self, message: Descriptor, written: bool) -> Schema:
        if message.full_name in _KNOWN:
            return _KNOWN[message.full_name]
        name = message.full_name if written else f"{message.full_name}.Sent"
        if name not in self.named:
            self.named[name] = schema = {"type": "object", "additionalProperties": False}
            schema["properties"] = {each.json_name: self._field(each, written) for each in message.fields}
            if written:
                schema["required"] = [each.json_name for each in message.fields if not each.has_presence]
        return _reference(name)

    def _field(self, field: FieldDescriptor, written: bool) -> Schema:
        if field.message_type is not None:
            schema = self._message(field.message_type, written)
        elif field.enum_type is not None:
            schema = {"type": "string", "enum": list(field.enum_type.values_by_name)}
        else:
            schema = _SCALARS[field.type]
        return {"type": "array", "items": schema} if field.is_repeated else schema


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
