"""Other images, labels or order, made from a DataModule."""
