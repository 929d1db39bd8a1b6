"""Measurements of curation."""
