"""What an owner hands out and how it is signed: shells, server packages, check vectors, sealed models."""
