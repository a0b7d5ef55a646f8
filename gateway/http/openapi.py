"""The OpenAPI description of the operations, and the page that shows it."""

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from gateway.http.operation import Operation
from gateway.http.schemas import Schema, Schemas

_SECURITY: list[dict[str, list[str]]] = [{}, {"token": []}]


def described(operations: Sequence[Operation]) -> dict[str, Any]:
    """The description, in OpenAPI 3.1."""
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for each in operations:
        path = re.sub(r":path\}", "}", each.path)
        paths.setdefault(path, {})[each.method.lower()] = _operation(each, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Winnow", "version": "1", "description": "Embeddings, reranking and search."},
        "paths": paths,
        "components": {
            "schemas": schemas.named,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": _SECURITY,
    }


def page(operations: Sequence[Operation]) -> bytes:
    """The description for readers: each operation with its body, without scripts."""
    description = described(operations)
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Winnow: HTTP API</title><h1>HTTP API</h1>"]
    parts.append("<p>For machines: <a href=/openapi.json>openapi.json</a>.</p>")
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(operation['summary'])}</p>")
            content = operation.get("requestBody", {}).get("content", {})
            for kind, body in content.items():
                shown = json.dumps(_resolved(body["schema"], description), indent=2, ensure_ascii=False)
                parts.append(f"<details><summary>{kind}</summary><pre>{html.escape(shown)}</pre></details>")
    return "".join(parts).encode()


def _operation(operation: Operation, schemas: Schemas) -> dict[str, Any]:
    answer = operation.answer
    schema = schemas.of(answer, written=True) if isinstance(answer, type) else answer
    said: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{operation.method}{operation.path}".lower()).strip("_"),
        "summary": operation.summary,
        "parameters": [_parameter(name, "path") for name in re.findall(r"\{(\w+)", operation.path)]
        + [_parameter(name, "query") for name in operation.query],
        "responses": {
            "200": {"description": "the result", "content": {_type(operation): {"schema": schema}}},
            **{
                code: {"description": text, "content": {"application/json": {"schema": operation.error}}}
                for code, text in (("4XX", "what the client can change"), ("5XX", "a retry may help"))
            },
        },
    }
    if operation.streams:
        del said["responses"]["200"]["content"][_type(operation)]["schema"]
        said["responses"]["4XX"]["content"]["application/x-ndjson"] = {}
        said["responses"]["5XX"]["content"]["application/x-ndjson"] = {}
    if operation.body is not None:
        content = {_type(operation): {"schema": schemas.of(operation.body)}}
        said["requestBody"] = {"required": not issubclass(operation.body, Message), "content": content}
    return said


def _type(operation: Operation) -> str:
    return "application/x-ndjson" if operation.streams else "application/json"


def _parameter(name: str, place: str) -> dict[str, Any]:
    schema: Schema = {"type": "string", "minLength": 1}
    if name == "ids":
        schema = {"type": "array", "items": {"type": "string"}}
    elif name == "page_size":
        schema = {"type": "integer", "minimum": 0, "maximum": 1000}
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _resolved(schema: Any, description: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_resolved(each, description) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(description["components"]["schemas"][schema["$ref"].rpartition("/")[2]], description)
    return {key: _resolved(value, description) for key, value in schema.items()}
