"""How good a model is, in millimetres, and how sure that is."""
