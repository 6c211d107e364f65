"""Built-in captures and scenes with known truth."""
