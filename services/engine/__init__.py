"""The model: checkpoint → tokens → packed batch → vectors or scores.

Knows nothing of gRPC, Redis or telemetry. Import from the modules: `engine.engine`, `engine.types`, `engine.errors`.
"""
