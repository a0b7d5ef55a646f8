import re

from gateway.http import openapi
from gateway.http.operations import OPERATIONS


def test_every_reference_leads_somewhere() -> None:
    description = openapi.described(OPERATIONS)
    references = re.findall(r"#/components/schemas/([\w.]+)", str(description))
    assert references
    assert set(references) <= set(description["components"]["schemas"])


def test_operations_have_names_of_their_own() -> None:
    paths = openapi.described(OPERATIONS)["paths"].values()
    names = [operation["operationId"] for methods in paths for operation in methods.values()]
    assert len(names) == len(set(names)) == len(OPERATIONS)
    assert {(each.method, each.path) for each in OPERATIONS} >= {("POST", "/v1/embeddings"), ("POST", "/v1/search")}
