"""The rows of `bench chaos`, by what is done to the system. Each prints a line for every case."""
