"""The outside world: one door per foreign library, which turns its errors into ours."""
