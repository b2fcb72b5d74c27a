"""Several nodes: what the machines of a run must know, prove and tell each other."""
