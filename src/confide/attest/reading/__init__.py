"""Reading evidence where it is made: each kind of environment has a reader, and `detect` says which are here."""
