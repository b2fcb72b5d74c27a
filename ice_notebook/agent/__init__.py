"""Runs in an agent.

There is one agent per run and machine, a process between the kernel and the ranks. In its main thread torch's `LocalElasticAgent` decides. Its
io thread owns every descriptor, starts ranks and writes logs and journal. What the kernel does not take at once is sent by a thread of
the outbox, so that nothing else ever waits for the kernel.
"""
