"""Data: verifiable tasks, their TFDS builders, verifiers, tokenizers and grain pipelines.

Only `tfds_builders` imports tensorflow_datasets and only `pipeline` imports grain; the other modules are plain Python,
numpy or JAX, so a study that needs neither does not pay for their import.
"""
