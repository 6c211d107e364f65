"""Shards become batches: datasets, the order of samples, loading, augmentation."""
