"""Errors that only the gateway has."""

import grpc
from google.rpc import error_details_pb2, status_pb2

from services.runtime.errors import Internal, Problem, UpstreamStatus


def as_problem(status: status_pb2.Status | None) -> Problem:
    """An item's error as the error of a whole call."""
    if status is None:
        return Internal()
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.INTERNAL)
    info = error_details_pb2.ErrorInfo()
    reason = next((info.reason for detail in status.details if detail.Unpack(info)), code.name)
    return UpstreamStatus(status, code, reason)
