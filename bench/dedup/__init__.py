"""Measurements of deduplication."""
