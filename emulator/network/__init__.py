"""Names, connections, TLS and the one router."""
