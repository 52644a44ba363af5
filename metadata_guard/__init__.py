"""Reads of the metadata store within the caller's namespaces: an optional proxy between Envoy and the store.

A caller shows a Kubernetes token (`reviews`: who is it, and which namespaces may it read?). Each answer of
the store is taken apart: the namespace of every node in it is looked up (`ownership`), and what the caller
may not read is left out (`answers`). What cannot be limited like that is refused, and so is every write.
"""
