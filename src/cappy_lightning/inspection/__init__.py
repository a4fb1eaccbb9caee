"""A look at instances and pools: counts, scores, lengths and sample rows, as text and as a page."""
