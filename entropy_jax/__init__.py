"""entropy_jax: measure, explain and control entropy while a model trains."""

__version__ = '0.1.0'
