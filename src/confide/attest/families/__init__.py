"""One module per family, each with `verify(evidence, collateral, roots, now) -> Claims`."""
