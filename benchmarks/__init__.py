"""Every speed claim: the command that measures it, the peers, the ratio."""
