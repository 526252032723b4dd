"""The `genaid` command: hosts the services, and reaches them as any client would."""
