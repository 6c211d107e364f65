"""Synthetic captures with exact ground truth: tires piled in a crate, rooms to pretrain on."""
