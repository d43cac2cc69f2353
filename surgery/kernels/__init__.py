"""Kernels: one pass over memory where torch's own operators take several. The plain forms stay the reference, and what runs elsewhere."""
