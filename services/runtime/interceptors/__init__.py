"""Interceptors around every handler.

Outermost first: errors → telemetry → auth → those of the application → calls → readiness → deadline → decoding.
"""

from services.runtime.interceptors.auth import AuthInterceptor
from services.runtime.interceptors.calls import CallsInterceptor
from services.runtime.interceptors.deadline import DeadlineInterceptor
from services.runtime.interceptors.decoding import DecodingInterceptor
from services.runtime.interceptors.errors import ErrorsInterceptor
from services.runtime.interceptors.interceptor import Interceptor, InterceptorChain
from services.runtime.interceptors.readiness import ReadinessInterceptor
from services.runtime.interceptors.telemetry import TelemetryInterceptor

__all__ = [
    "AuthInterceptor",
    "CallsInterceptor",
    "DeadlineInterceptor",
    "DecodingInterceptor",
    "ErrorsInterceptor",
    "Interceptor",
    "InterceptorChain",
    "ReadinessInterceptor",
    "TelemetryInterceptor",
]
