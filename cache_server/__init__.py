"""The cache: a webhook that marks and holds the Pods of steps, and a controller that decides for them.

`webhook` is pure and answers admission requests; `controller` decides for every held Pod and writes
what `finish` says; `recorder` turns steps that ran into entries; `sweeper` lets go of Pods that nobody
decided for, in every replica and, as a process of its own, in `janitor`. `entries` and `artifacts`
talk to the database and to object stores. `app` wires them together.
"""
