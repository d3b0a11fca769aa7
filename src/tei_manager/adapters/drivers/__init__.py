"""How instances are executed."""
