"""Typed, frozen settings: what a plan, a recipe, a pipeline and a step may say."""
