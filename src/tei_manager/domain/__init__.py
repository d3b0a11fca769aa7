"""The nouns: frozen values and errors. No I/O, no clock, no randomness, no logging, no asyncio."""
