"""A batch as plain integers, and their way to the device."""
