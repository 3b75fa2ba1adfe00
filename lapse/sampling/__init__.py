"""Floor 2. Random keys: generators, and the schemes that draw them."""
