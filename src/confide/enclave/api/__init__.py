"""The HTTP interface of a served model: OpenAI-compatible, and two simpler ones."""
