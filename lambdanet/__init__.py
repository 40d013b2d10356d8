"""lambdanet: efficient vision attention in JAX and Flax NNX."""

__version__ = "0.1.0"
