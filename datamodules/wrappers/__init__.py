"""DataModules that change the images, labels or order of another DataModule."""
