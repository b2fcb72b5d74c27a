"""This machine: processes, ports, scheduling, files, IPython. It knows nothing about runs."""
