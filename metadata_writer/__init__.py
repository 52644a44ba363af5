"""Records every step of every workflow, run or reused, in the metadata store (MLMD): what it read, what
it put out, how it ended.

`reader` says what is recorded of a step (pure), `graph` how that joins what the store has already
(pure), `recorder` writes it. `sightings` is what the cluster looks like, `app` keeps the two in step:
nothing that matters lives here, so a restart looks again and writes only what is missing.
"""
