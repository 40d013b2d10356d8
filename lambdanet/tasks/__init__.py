"""Tasks: what is learnt, as modules of plain functions."""
