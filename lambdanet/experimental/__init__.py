"""What is built and tested as far as it can be, but not proven where it is meant to run. The
docstring of each module says what is known of it and what is not.

Reached by name alone: the function that is asked for it imports it, nothing chooses it. Imports
nothing of lambdanet, so whoever may use it can.
"""
