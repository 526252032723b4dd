"""What the servicers of all services have in common: what they say the same way, and their calls about logs."""
