"""What became of one call, as its caller saw it."""

from dataclasses import astuple, dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2

# The codes that the contract names for calls that are well formed.
DOCUMENTED = {"OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call. Seconds; `at`: its intended arrival since the start of the load, from which `latency` counts."""

    at: float
    latency: float
    lag: float  # of the load generator: the call was sent so much later than intended
    code: str
    reason: str = ""  # of the server; empty if it gave none, as when the caller's own deadline passed
    retry_info: bool = False
    quota_failure: bool = False
    pushback: str = ""
    degraded: bool = False
    tokens: int = 0  # of embedded texts, as the answer says

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.code == "OK"

    @property
    def refused(self) -> bool:
        """Whether the server said no, with a reason."""
        return not self.ok and bool(self.reason)

    @property
    def explained(self) -> bool:
        """Whether the contract names such an end: CANCELLED, UNKNOWN and INTERNAL are none."""
        return self.code in DOCUMENTED

    def as_list(self) -> list[object]:
        """For JSON."""
        return list(astuple(self))


def failure(error: grpc.aio.AioRpcError) -> tuple[str, str, bool, bool, str]:
    """Code, reason, whether there is a RetryInfo and a QuotaFailure, and pushback, of a failed call."""
    reason, retry_info, quota_failure = "", False, False
    trailers: dict[str, str | bytes] = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin", b"")
    for detail in status_pb2.Status.FromString(details if isinstance(details, bytes) else b"").details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
        retry_info = retry_info or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
        quota_failure = quota_failure or detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR)
    return error.code().name, reason, retry_info, quota_failure, str(trailers.get("grpc-retry-pushback-ms", ""))
