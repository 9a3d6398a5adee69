"""Layers of neural networks in linen, without knowledge of any model."""
