"""Synchronous DRAM: a controller behind the AXI ports, and a chip that knows its data sheet."""
