"""A causal language model before protection: opened, quantized, and cut into a shell and a server package."""
