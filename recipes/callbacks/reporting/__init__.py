"""What measures a run and tells the result: tables, files and pictures."""
