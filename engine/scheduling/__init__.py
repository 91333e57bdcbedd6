"""Who runs how many tokens next. Pure Python: no torch, no clock, no I/O."""
