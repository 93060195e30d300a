"""`python -m benchmarks.attention_peer`."""

from benchmarks.attention_peer.run import main

main()
