"""What a launch costs beside other launchers, through a real kernel: `python -m benchmarks`. Writes `docs/benchmarks.md`."""
