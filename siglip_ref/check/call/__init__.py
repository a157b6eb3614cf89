"""How a user's function is called, in any framework, and what it may answer."""
