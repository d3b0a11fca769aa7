"""The fleet: one supervisor per instance, desired against observed, state that survives."""
