"""Captures of piled tires as a structured-light camera sees them."""
