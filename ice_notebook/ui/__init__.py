"""Where a person stands: class, magics, command line, panel."""
