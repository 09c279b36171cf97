"""What draws: numbers in, figure out."""
