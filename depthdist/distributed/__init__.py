"""Ranks: meet, exchange, and end together."""
