"""What runs a model, behind one small protocol."""
