"""Zip archives that are never written: laid out from what is known of the files, read in any range."""
