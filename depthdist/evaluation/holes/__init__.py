"""How well holes of measured depth are filled, and whether the expected error is right."""
