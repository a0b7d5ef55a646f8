"""What every process needs: settings, errors, telemetry, authentication, the server's lifecycle and client channels.

This package imports neither torch nor the engine, so the gateway's image stays small.
"""
