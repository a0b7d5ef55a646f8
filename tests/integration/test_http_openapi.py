"""The OpenAPI description is true: schemathesis finds no response that it does not describe, and no fault."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.collections import create
from tests.support.gateway import running
from tests.support.http import client
from tests.support.pypi import environment, installed
from tests.support.redis import RedisProcess

SCHEMATHESIS = "schemathesis==4.32.5"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# What exists, so that requests come further than to NOT_FOUND.
KNOWN = {"model": "stand-in", "name": "docs", "alias": "all", "id": "stand-in"}


def narrowed(description: Any) -> Any:
    """The description, in which fields and parameters that name something name what exists."""
    if isinstance(description, list):
        return [narrowed(each) for each in description]
    if not isinstance(description, dict):
        return description
    if description.get("in") == "path":
        return {**description, "schema": {"type": "string", "enum": [KNOWN[description["name"]], "other"]}}
    if "properties" in description and "model" in description.get("required", ()):
        properties = {**description["properties"], "model": {"type": "string", "enum": [KNOWN["model"], "other"]}}
        return {**description, "properties": properties}
    return {key: narrowed(value) for key, value in description.items()}


@pytest.mark.timeout(240)
async def test_the_description_is_true(redis8: RedisProcess, tmp_path: Path) -> None:
    folder = installed("schemathesis", SCHEMATHESIS)
    async with running(redis8.url, http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        await create(gateway)
        description = (await http.get("/openapi.json")).json()
        (tmp_path / "openapi.json").write_text(json.dumps(narrowed(description)))
        command = [sys.executable, "-P", "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json")]
        options = ["--url", f"http://{gateway.served.http}", "--checks", CHECKS, "--phases", "coverage,fuzzing"]
        # It cannot write NDJSON.
        chosen = ["--exclude-operation-id", "post_v1_collections_name_documents", "--max-examples", "5"]
        seeded = ["--generation-deterministic", "--no-color", "--warnings", "off"]
        process = await asyncio.create_subprocess_exec(
            *command, *options, *chosen, *seeded, env=environment(folder), cwd=tmp_path, stdout=subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


async def test_the_page_lists_all_operations() -> None:
    async with running(http_listen="127.0.0.1:0") as gateway, client(gateway) as http:
        page = await http.get("/docs")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path, methods in (await http.get("/openapi.json")).json()["paths"].items():
            for method in methods:
                assert f"{method.upper()} {path}<" in page.text
