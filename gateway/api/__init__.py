"""The gateway's gRPC services: the wire on one side, the gateway's own types on the other."""
