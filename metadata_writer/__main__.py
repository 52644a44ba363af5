"""`python -m metadata_writer`."""

import sys

from metadata_writer.app import main

if __name__ == "__main__":
    sys.exit(main())
