"""Training: state, step, optimiser, schedule, mesh, checkpoints, metrics, evaluation. Sees pytrees and callables, never a model class."""
