"""Weights in and out: PyTorch checkpoints and safetensors by name tables, without PyTorch.

- `names`: rules that map PyTorch's parameter names and layouts to ours; strict conversion.
- `sources`: finds weights in folders, workdirs and repositories of the hub.
- `files`: PyTorch zip checkpoints (read without running code from them), safetensors, npz.
- `grids`: which maps and windows tables of positions are for.

Every module that has a PyTorch counterpart keeps its own table, `TORCH_NAMES`, beside its
mathematics; models join the tables of their parts with `names.prefixed`.
"""
