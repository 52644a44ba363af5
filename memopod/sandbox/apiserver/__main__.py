"""`python -m memopod.sandbox.apiserver`."""

import sys

from memopod.sandbox.apiserver.app import main

if __name__ == "__main__":
    sys.exit(main())
