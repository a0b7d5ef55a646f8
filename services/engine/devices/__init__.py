"""How a packed batch runs on a device."""
