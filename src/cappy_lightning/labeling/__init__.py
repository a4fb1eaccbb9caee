"""Rouge-L and the weak labels."""
