"""Networks as the matrix products of their training step: captured, by name, from files."""
