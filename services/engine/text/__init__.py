"""Text to tokens: the exact prompts, the tokenizer, and threads of its own."""
