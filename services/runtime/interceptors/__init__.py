"""Server interceptors, outermost first: errors → telemetry → auth → gate → deadline → messages."""

from services.runtime.interceptors.auth import AuthInterceptor
from services.runtime.interceptors.deadline import DeadlineInterceptor
from services.runtime.interceptors.errors import ErrorsInterceptor
from services.runtime.interceptors.gate import GateInterceptor
from services.runtime.interceptors.messages import MessagesInterceptor
from services.runtime.interceptors.telemetry import TelemetryInterceptor

__all__ = [
    "AuthInterceptor",
    "DeadlineInterceptor",
    "ErrorsInterceptor",
    "GateInterceptor",
    "MessagesInterceptor",
    "TelemetryInterceptor",
]
