"""What runs inside a trusted execution environment: a whole model, its API, and the channel that ends there."""
