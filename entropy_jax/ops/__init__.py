"""Leaf mathematics without papers: masks, the categorical distribution, groups, ratios, selection."""
