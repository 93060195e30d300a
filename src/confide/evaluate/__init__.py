"""What can be measured of a private model: how its text compares, and what its server saw."""
