"""The REST door: connections, its guard, bodies and errors."""
