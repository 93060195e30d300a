"""GGUF files, the format of llama.cpp: its metadata, its names for tensors, its block quantization."""
