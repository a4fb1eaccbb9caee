"""Shards of instances, their order, and the LightningDataModule."""
