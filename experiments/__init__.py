"""Runnable studies: `python -m experiments.NAME --config=configs/NAME.py[:variant] --workdir=DIR`, several by `python -m experiments`."""
