"""One file for each version of the schema; released ones are never changed."""
