"""Floor 6. Doors for the tests. Not part of the API."""
