"""Search: its types, its stages, how time is divided between them, and how candidates are ordered."""
