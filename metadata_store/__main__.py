"""`python -m metadata_store`."""

import sys

from metadata_store.app import main

if __name__ == "__main__":
    sys.exit(main())
