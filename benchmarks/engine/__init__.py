"""How much of the machine the embedded engine turns into vectors: served and offline, by the same graph, in turns.

`python -m benchmarks.engine --model ID`; see docs/explanation/performance.md.
"""
