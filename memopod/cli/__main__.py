"""`python -m memopod.cli`: the console script, for where it is not on the path."""

from memopod.cli import main

main()
