"""Video-driven portrait animation in JAX, after *Stable Video-Driven Portraits* (arXiv 2509.17476)."""

__version__ = "0.1.0"
