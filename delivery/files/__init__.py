"""Which files may leave a folder, and what is known of each."""
