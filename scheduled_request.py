"""The sync broker under the name that it has elsewhere: `python scheduled_request.py --interval … --api … --project … --ext …`."""

import sys

from delivery.main import main

sys.argv.insert(1, "broker")
main()
