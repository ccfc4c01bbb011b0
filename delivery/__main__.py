"""`python -m delivery`."""

from delivery.main import main

main()
