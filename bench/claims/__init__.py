"""What the paper claims, and what other methods do on the same ground at equal cost: `python -m bench.claims`."""
