"""Real inputs that come inside installed packages, and generators of synthetic ones."""
