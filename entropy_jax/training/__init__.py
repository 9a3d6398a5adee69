"""One training loop for every experiment: state, step, optimizers, checkpoints, metric files, progress, flags."""
