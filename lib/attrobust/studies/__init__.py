"""What a single notebook alone calls, one file a notebook: plumbing of its pictures and tables."""
