"""One encrypted linear layer, ours and its peers', on the same integers, machine and day: `python -m benchmarks peers`.

`run` is the whole question. `glwe`, `ckks_vector` and `ckks_diagonals` run as programs in an environment of their own
(`environment`) and import nothing but the peer, numpy, `layer` and `measurement`.
"""
