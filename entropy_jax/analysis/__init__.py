"""What a run left behind: run folders as arrays, statistics over seeds, claims with verdicts, figures, the report.

Two more axis letters are used here: R runs of one setting (one a seed) and N logged steps, so `entropy_RxN` is an
entropy curve a seed.
"""
