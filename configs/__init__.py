"""One ml_collections config a study, `get_config(variant)`."""
