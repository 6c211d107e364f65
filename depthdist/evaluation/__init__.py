"""Evaluation of a run: accuracy in millimetres, and its confidence intervals."""
