"""Whether the relief that a run draws is true: captures whose exact depth is known, and goals."""
