"""What the resource manager knows and decides; no wire, no sockets."""
