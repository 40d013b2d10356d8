"""Pure functions on arrays; each operation may have several lowerings of the same maths, behind
equality tests.
"""
