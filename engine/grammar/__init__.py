"""Constrained output: constraints become grammars, grammars become masks of the tokens that may come next."""
