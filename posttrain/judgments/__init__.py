"""Judgments: who made them, what preferences they state, how well annotators agree."""
