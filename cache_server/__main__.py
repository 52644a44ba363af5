"""`python -m cache_server`."""

import sys

from cache_server.app import main

sys.exit(main())
