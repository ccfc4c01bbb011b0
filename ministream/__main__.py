"""`python -m ministream` is the `ministream` command."""

from ministream.commands.main import main

main()
