"""The roof: the `ministream` command."""
