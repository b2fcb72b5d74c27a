"""The agent: one process per run, between the kernel and the ranks. torch's elastic agent decides; this package does.

The main thread runs torch's `LocalElasticAgent`; the io thread owns every descriptor, starts ranks, writes logs and journal; a third
thread sends to the kernel, so that nothing here ever waits for it.
"""
