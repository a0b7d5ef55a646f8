"""Runs everything on one machine: a private Redis 8, both workers, the gateway, and a demo."""
