"""What every engine child needs: its process, its supervisor, its frames, its log."""
