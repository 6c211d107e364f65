"""Small data, small models, and commands as a person types them, for all tests."""
