"""A training run: its updates, its state, and the folder it lives in."""
