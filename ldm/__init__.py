"""ldm: a research training framework for latent diffusion. Start reading at ``ldm/interfaces.py``."""

__version__ = "0.1.0"
