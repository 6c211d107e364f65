"""Captures of piled tires as a structured-light camera records them."""
