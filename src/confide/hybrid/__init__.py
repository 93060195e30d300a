"""A language model whose linear layers run encrypted on a server: client shell, layer server, messages, ledger."""
