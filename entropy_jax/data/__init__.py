"""Data: verifiable tasks, images, corpora and synthetic sets, their TFDS builders, verifiers, tokenizers and grain pipelines.

Only `tfds_builders` imports tensorflow_datasets, only `pipeline` and `examples` import grain, `named_sets` and `questions` need both; what
`bags` and `translation` give is what `examples` takes. The other modules are plain Python, numpy or JAX, so a study that needs neither does
not pay for their import.
"""
