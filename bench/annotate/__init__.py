"""Measurements of collecting judgments."""
