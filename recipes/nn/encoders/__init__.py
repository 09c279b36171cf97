"""Networks from images to features, their stages, and loading their weights."""
