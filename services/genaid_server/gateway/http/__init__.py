"""HTTP for every API of the gateway: connections, the guard of requests, bodies and errors."""
