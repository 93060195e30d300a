"""What a model costs on a machine: quantizations beside each other, and what a trusted environment adds."""
