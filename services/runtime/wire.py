"""Counts the fields of a serialised message before it is parsed.

A parsed message can take fifty times the memory of its bytes: an empty text is two bytes on the wire. The walk reads
tags and lengths only, copies nothing and stops at the first excess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from services.runtime.errors import InvalidField

# Fields of all levels together, known or not: many more than a valid message has.
_FIELDS_PER_ITEM = 8
_FIELDS_BESIDES = 1024

_MAX_VARINT_BITS = 70
_VARINT, _FIXED64, _LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_KINDS = {
    FieldDescriptor.TYPE_FIXED64: _FIXED64,
    FieldDescriptor.TYPE_SFIXED64: _FIXED64,
    FieldDescriptor.TYPE_DOUBLE: _FIXED64,
    FieldDescriptor.TYPE_STRING: _LENGTH,
    FieldDescriptor.TYPE_BYTES: _LENGTH,
    FieldDescriptor.TYPE_MESSAGE: _LENGTH,
    FieldDescriptor.TYPE_GROUP: _START_GROUP,
    FieldDescriptor.TYPE_FIXED32: _FIXED32,
    FieldDescriptor.TYPE_SFIXED32: _FIXED32,
    FieldDescriptor.TYPE_FLOAT: _FIXED32,
}


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """`most`: how often it may occur in a message; None: as often as all fields together."""

    path: str
    most: int | None
    inner: _Fields | None


_Fields: TypeAlias = Mapping[int, "_Field"]  # by tag: number and wire type


class Shape:
    """What a message of type `message` may hold: `max_items` in each repeated field.

    Numbers in packed fields are not counted: parsed, they take at most eight times their bytes.
    """

    def __init__(self, message: Descriptor, max_items: int) -> None:
        self._name = message.full_name
        self._max_items = max_items
        self._fields = self._of(message, "", 1, {})

    def check(self, data: bytes) -> None:
        """Raises InvalidField if the message holds too much. A malformed message is left to the parser."""
        try:
            self._walk(data)
        except IndexError:  # it ends within a field, or a varint does not end
            return

    def _walk(self, data: bytes) -> None:
        position, end, fields = 0, len(data), self._fields
        outside: list[tuple[int, _Fields]] = []
        counts: dict[_Field, int] = {}
        left = most = self._max_items * _FIELDS_PER_ITEM + _FIELDS_BESIDES
        while True:
            if position >= end:
                if position > end or not outside:
                    return
                end, fields = outside.pop()
                continue
            tag = data[position]
            position += 1
            if tag > 0x7F:
                tag, position = _varint(data, position - 1)
            left -= 1
            if left < 0:
                raise InvalidField(self._name, f"has more than {most} fields; send it in parts")
            known = fields.get(tag)
            if known is not None and known.most is not None:
                counts[known] = count = counts.get(known, 0) + 1
                if count > known.most:
                    raise InvalidField(
                        known.path,
                        f"has more than {known.most} items; at most {known.most} are allowed in one request",
                    )
            kind = tag & 7
            if kind == _LENGTH:
                length = data[position]
                position += 1
                if length > 0x7F:
                    more = data[position]
                    if more > 0x7F:
                        length, position = _varint(data, position - 1)
                    else:  # most texts have such a length: this is faster than the call
                        length += (more << 7) - 0x80
                        position += 1
                if known is not None and known.inner is not None:
                    outside.append((end, fields))
                    end, fields = position + length, known.inner
                else:
                    position += length
            elif kind == _VARINT:
                position = position + 1 if data[position] <= 0x7F else _varint(data, position)[1]
            elif kind == _FIXED64:
                position += 8
            elif kind == _FIXED32:
                position += 4
            elif kind not in (_START_GROUP, _END_GROUP):  # what is in a group is counted as if it stood alone
                return

    def _of(self, message: Descriptor, prefix: str, most: int, around: Mapping[str, dict[int, _Field]]) -> _Fields:
        if message.full_name in around:
            return around[message.full_name]
        fields: dict[int, _Field] = {}
        around = {**around, message.full_name: fields}
        for each in message.fields:
            path = prefix + each.name
            often = most * self._max_items if each.is_repeated else most
            inner = self._of(each.message_type, f"{path}.", often, around) if each.message_type else None
            kind = _KINDS.get(each.type, _VARINT)
            fields[each.number << 3 | kind] = _Field(path, often if each.is_repeated else None, inner)
        return fields


def holds_lists(message: Descriptor, around: frozenset[str] = frozenset()) -> bool:
    """Whether the message has a repeated field, at any level."""
    if message.full_name in around:
        return False
    around |= {message.full_name}
    return any(
        each.is_repeated or (each.message_type is not None and holds_lists(each.message_type, around))
        for each in message.fields
    )


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and the position after it."""
    value = 0
    for shift in range(0, _MAX_VARINT_BITS, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return value, position
    raise IndexError("a varint of more than ten bytes")
