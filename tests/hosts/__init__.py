"""Hosts that share nothing, in network namespaces: `make hosts`, as root."""
