"""Floor 7. Doors for the tests. Not part of the API."""
