"""Training: state, step, optimiser, mesh, checkpoints, metrics; sees pytrees and callables, no
model class.
"""
