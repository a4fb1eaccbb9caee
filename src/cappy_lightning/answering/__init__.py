"""An LLM with a scorer in front of it: as many candidates as are needed, and the best of them."""
