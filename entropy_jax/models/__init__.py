"""Policies: tabular tables and the transformer decoder, reached only through `models.policy.Policy`."""
