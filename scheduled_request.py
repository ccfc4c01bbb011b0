"""The sync broker under the name that it has elsewhere: `scheduled_request.py --interval … --api … --project …`."""

import sys

from delivery.main import main

sys.argv.insert(1, "broker")
main()
