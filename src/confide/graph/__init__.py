"""Graphs of services: which there are, what each has to be, who may ask whom, and who may change that."""
