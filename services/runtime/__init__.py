"""What every process needs once: settings, errors, telemetry, authentication, the server's life and client channels.

Nothing here knows the model: this package imports neither torch nor the engine, so the gateway's image stays small.
"""
