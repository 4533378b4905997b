"""The theory of notebooks 02 and 06, one idea a file, in float64: from the step size of SGD to the pixels; attention.

Import the modules: ``from attrobust.theory import duality, stability``.
"""
