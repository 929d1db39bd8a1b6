"""Measurements of sampling: engines side by side, adaptive K beside fixed K."""
