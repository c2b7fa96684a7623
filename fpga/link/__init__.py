"""The host link of a board: frames over UART, their gateware, and the host's end (docs/fpga.md)."""
