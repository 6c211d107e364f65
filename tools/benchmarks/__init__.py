"""What `tools/bench.py` measures: a module for each of its words, and what they share."""
