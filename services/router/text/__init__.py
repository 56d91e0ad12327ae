"""Text to tokens and tokens to text: tokenizers, chat templates in a process of their own, stop strings."""
