"""What people read of a search: progress while it runs, and tables, charts and a page when it has ended."""
