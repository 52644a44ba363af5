"""`python -m memopod.sandbox.kubelet`."""

import sys

from memopod.sandbox.kubelet.app import main

sys.exit(main())
