"""From a sealed package to a measured machine: manifests, what the hardware will measure, and what gives secrets away.

Knows no network and starts nothing. What it writes is for other programs to run.
"""
