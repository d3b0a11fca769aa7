"""What the manager's doors add to a call: product and direct call in one run, interleaved in blocks.

`python -m benchmarks`; see docs/explanation/performance.md.
"""
