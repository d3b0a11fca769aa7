"""The configuration: file, environment and flags become one checked value with origins."""
