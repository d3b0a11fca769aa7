"""From many concurrent requests to few well-filled runs: permits, tokenizer threads, packing, compute threads.

One event loop owns jobs, permits and every number that is counted; threads own nothing but the run in their hands.
"""
