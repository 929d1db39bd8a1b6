"""Measurements of what recipes stand on: batches of hooks, and the sandbox."""
