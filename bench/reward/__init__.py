"""Measurements of the reward model: training, scoring."""
