"""The wire contract as names, numbers and pure functions."""
