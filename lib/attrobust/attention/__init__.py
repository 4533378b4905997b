"""Attention kernels: queries and keys in, the attention matrix out; and the layer that uses one.

The matrix is the *output* of a module and stays in the graph: nobody needs a hook to read it, and nothing hides in a
fused product that has no second derivative.
"""

from attrobust.attention.kernels import KERNELS, LINKS, NORMS, SCORES, Kernel, kernel, mix_in_linear_time
from attrobust.attention.layer import Attention

__all__ = ["KERNELS", "LINKS", "NORMS", "SCORES", "Attention", "Kernel", "kernel", "mix_in_linear_time"]
