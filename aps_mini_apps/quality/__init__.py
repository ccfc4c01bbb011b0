"""Quality: measures of a reconstruction against a reference, and the program that prints them."""
