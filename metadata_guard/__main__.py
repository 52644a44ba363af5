"""`python -m metadata_guard`."""

import sys

from metadata_guard.app import main

if __name__ == "__main__":
    sys.exit(main())
