"""`python -m s2cs` is the `s2cs` command."""

from s2cs.main import main

main()
