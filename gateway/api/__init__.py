"""The gRPC services of the gateway: convert between messages and the gateway's own types."""
