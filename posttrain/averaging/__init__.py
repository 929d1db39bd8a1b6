"""Averages of models (section 4.1.5): streamed means of weights, and greedy soups.

average_models([Path("dpo-a"), Path("dpo-b")], Path("dpo"))
"""

from posttrain.averaging.mean import AverageReport, average_models
from posttrain.averaging.soup import Soup, greedy_soup

__all__ = ["AverageReport", "Soup", "average_models", "greedy_soup"]
