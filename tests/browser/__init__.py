"""A package, so that its servers and its browser end with the last of these tests: idle as they are, they cost a quarter of a core."""
