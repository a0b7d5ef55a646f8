"""One machine: a private Redis 8, both workers and the gateway, and a demo on top of them."""
