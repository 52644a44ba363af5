"""Answers as people and programs want them: trees and tables for a terminal, JSON-able dicts, diagrams.

`tree` and `table` take a graph of `up` or `down`, `run_tree` and `run_table` a run, `runs_table` the
list of runs; `as_document` takes any of them, `dot` and `mermaid` a graph.
"""

from memopod.lineage.render.diagrams import dot, mermaid
from memopod.lineage.render.documents import as_document
from memopod.lineage.render.tables import run_table, runs_table, table
from memopod.lineage.render.trees import run_tree, tree

__all__ = ["as_document", "dot", "mermaid", "run_table", "run_tree", "runs_table", "table", "tree"]
