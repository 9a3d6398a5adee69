"""Data: verifiable tasks, images, corpora and synthetic sets, their TFDS builders, verifiers, tokenizers and grain pipelines.

Only `tfds_builders` imports tensorflow_datasets, only `pipeline` and `examples` import grain, and `named_sets` needs both; `bags` and
`translation` give what `examples` takes. The other modules are plain Python, numpy or JAX, so a study that needs neither does not pay for
their import.
"""
