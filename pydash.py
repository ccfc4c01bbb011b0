"""The sync server under the name that it has elsewhere: `python pydash.py --host … --port … --datadir …`."""

import sys

from delivery.main import main

sys.argv.insert(1, "server")
main()
