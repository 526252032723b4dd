"""What the image worker knows and decides; no wire, no sockets."""
