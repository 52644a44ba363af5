"""How much the controller adds to what the API server takes for the same writes: `make bench-controller`."""
