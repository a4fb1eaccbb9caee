"""The scorer: encoding, model, training module, adapters, and the public `Cappy`."""
