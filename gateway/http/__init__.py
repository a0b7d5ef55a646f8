"""HTTP in front of the gateway's gRPC services: the APIs that clients of OpenAI, Cohere and TEI send, and its own."""
