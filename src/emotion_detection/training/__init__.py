"""Training one network: batches, augmentation, epochs, checkpoints."""
