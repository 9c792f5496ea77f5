"""One job kind each."""
