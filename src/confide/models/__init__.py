"""A causal language model before protection: opened, quantized, cut into a shell and a server package."""
