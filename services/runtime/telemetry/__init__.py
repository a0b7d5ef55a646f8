"""Traces, metrics and logs. A process has one `Telemetry` and passes it on; OpenTelemetry's globals are not used."""
