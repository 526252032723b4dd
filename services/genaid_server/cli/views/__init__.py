"""What is printed, and how it looks."""
