"""The process: command line, listeners, the two wire formats, metrics, start and drain."""
