"""One module for each family of evidence. Each has `verify(evidence, collateral, roots, now) -> Claims`."""
