"""The data plane: routing, permits and calls. It reaches the fleet through ports only."""
