"""What people are told of a scan: its progress while it runs; a story, a picture and a page when it has ended."""
