"""Proxies (S2DS): templates for each kind, what runs them, and what keeps them running."""
