"""What every service of this package does with HTTP."""
