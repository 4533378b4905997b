"""The theory of notebook 02, one idea a file: from the step size of SGD to the pixels, in float64.

Import the modules: ``from attrobust.theory import duality, stability``.
"""
