"""Traces, metrics and logs: one `Telemetry` a process, passed to whoever reports. OpenTelemetry keeps no globals."""
