"""A Hugging Face checkpoint: where it is, what it holds, and whether it can be served."""
