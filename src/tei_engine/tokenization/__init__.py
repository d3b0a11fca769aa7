"""Text to token ids and back. The only door to the `tokenizers` library; no model, no queue, no wire format."""
