"""What does one GPT-2 head cost with TFHE, compiled by Concrete Python? `python -m benchmarks.attention_peer`.

`run` is the whole question: the head of the quantized study, at few bits. `concrete_head` runs as a program in an
environment of its own, with numpy before 2, and imports nothing but Concrete, numpy and `head`.
"""
