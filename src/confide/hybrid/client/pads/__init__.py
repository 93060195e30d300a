"""Pads made ahead: where they come from, and the pool that holds them in memory until each is used, once."""
