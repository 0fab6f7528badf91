"""What people look at: the picture of a run, tables of rewards, comparisons of models."""
