"""Fine-tuning: data → examples → packed batches → losses → steps → adapters and checkpoints."""
