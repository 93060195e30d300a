"""What hardware will measure of a machine that does not run yet, from the files that it is started with.

Everything here goes by specifications and by the sources of QEMU, EDK2 and Linux. What depends on more than these files
is listed by name and never guessed.
"""
