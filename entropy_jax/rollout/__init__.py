"""Sampling from policies and scoring what they sampled."""
