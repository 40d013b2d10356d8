"""The registry object alone, so that attention files and the package can both import it."""

from lambdanet.registry import Registry

registry = Registry("attention")
