"""Selecting candidates, the baselines beside it, and the report."""
