"""When plain SGD makes explanations hard to manipulate, why softmax attention misses out, what restores it.

The modules are the vocabulary; import them, not names: ``from attrobust import attacks, curvature``.
"""

__version__ = "0.1.0"
