"""How weights are stored and how a Linear is computed with them."""
