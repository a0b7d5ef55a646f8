"""Search: its types, its stages, how their time is divided, and how candidates are ordered."""
