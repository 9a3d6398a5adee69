"""`python -m entropy_jax.catalog` prints METHODS.md."""

from entropy_jax.catalog.document import markdown

print(markdown(), end='')
