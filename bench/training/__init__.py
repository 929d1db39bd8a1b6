"""Measurements of training and averaging."""
