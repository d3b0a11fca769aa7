"""Small tools that could be someone else's library. Nothing here knows what an instance is."""
