"""The page that the proxy serves for people: a chat, and beside it what was verified of the model that answers."""
