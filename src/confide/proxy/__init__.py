"""A local address for programs that speak OpenAI's API: it verifies, encrypts or runs the shell, and forwards."""
