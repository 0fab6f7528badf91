"""Direct-Align and SRPO: the mathematics of one update, and what it asks of the models."""
