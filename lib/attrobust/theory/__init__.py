"""The theory of notebooks 02, 06 and 07, one idea a file, in float64: from step size to pixels; attention.

Import the modules: ``from attrobust.theory import duality, stability``.
"""
