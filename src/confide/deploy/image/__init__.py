"""An image of a machine that is measured whole: a kernel, an initial RAM disk, and a root that dm-verity holds.

`start` and `machine` are the programs in it, and know nothing of how it is built.
"""
