"""The REST gateway: HTTP and JSON on one side, `genaid_client` on the other."""
