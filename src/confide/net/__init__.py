"""What every party needs of a network: TLS, loopback, bounded reads. Knows no protocol."""
