"""`sat.offload`: the matrix work of any PyTorch program on a device (docs/offload.md)."""
