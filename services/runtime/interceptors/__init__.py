"""Layers around every handler, outermost first: errors → telemetry → auth → gate → deadline → messages."""

from services.runtime.interceptors.auth import AuthLayer
from services.runtime.interceptors.deadline import DeadlineLayer
from services.runtime.interceptors.errors import ErrorsLayer
from services.runtime.interceptors.gate import GateLayer
from services.runtime.interceptors.layer import Layers
from services.runtime.interceptors.messages import MessagesLayer
from services.runtime.interceptors.telemetry import TelemetryLayer

__all__ = [
    "AuthLayer",
    "DeadlineLayer",
    "ErrorsLayer",
    "GateLayer",
    "Layers",
    "MessagesLayer",
    "TelemetryLayer",
]
