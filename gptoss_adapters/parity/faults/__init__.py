"""Seeded faults: real mistakes of real ports, each a changed copy of the reference."""
