"""Training on a device: trainer, ranks and shards, the models of the demo."""
